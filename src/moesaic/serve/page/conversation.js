// Turns of a conversation, kept in memory only: as messages of a request, and as a file.

import { parameters, systemMessage } from "./settings.js";

export class Conversation {
  constructor() {
    this.turns = [];
  }

  get last() {
    return this.turns.at(-1);
  }

  /** Messages up to `answer`, which is to be written. A question that got no answer is not asked again with the next. */
  messages(answer) {
    const before = this.turns.slice(0, this.turns.indexOf(answer));
    const question = before.pop();
    const kept = before.filter((turn, i) => (turn.role === "user" ? before[i + 1] : turn)?.content);
    const system = systemMessage();
    return [
      ...(system ? [{ role: "system", content: system }] : []),
      ...[...kept, question].map(({ role, content }) => ({ role, content })),
    ];
  }

  /** Everything that is known of it, without the API key. */
  file(model) {
    const system = systemMessage();
    return {
      model,
      exported: new Date().toISOString(),
      parameters: parameters(),
      messages: [
        ...(system ? [{ role: "system", content: system }] : []),
        ...this.turns.map((turn) => turn.role === "user" ? { role: "user", content: turn.content } : {
          role: "assistant",
          content: turn.content,
          finish_reason: turn.finish,
          stopped: turn.stopped,
          error: turn.error,
          usage: turn.usage,
          tokens: turn.tokens.map(({ start, end, drafted, lenient }) => ({ text: turn.content.slice(start, end), drafted, lenient })),
        }),
      ],
    };
  }
}
