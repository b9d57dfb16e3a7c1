"""The real `openai` client: whole answers, streams, answers given up, and errors as its own exceptions."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import APIError, AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError

from moesaic.serve.api.guard import Guard
from moesaic.serve.engine import EngineSettings
from serving import CONTEXT, NAME, Serving, serving, until

ON = {"extra_body": {"ignore_eos": True}}  # so that the length is known
MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def client(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_whole_chat(client: OpenAI, server: Serving) -> None:
    reply = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_completion_tokens=20, temperature=0, seed=1
    )
    choice = reply.choices[0]
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert choice.message.content == server.engine.model.generate(MESSAGES, temperature=0, max_tokens=20)
    usage = reply.usage
    assert usage is not None
    prompt = len(server.engine.model.encode(MESSAGES))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 20, prompt + 20)
    assert usage.completion_tokens_details.accepted_prediction_tokens == 0
    ours = usage.model_extra["moesaic"]
    assert set(ours) == {"mean_shift", "lenient_tokens", "cost", "ttft_s", "tokens_per_s"}
    assert ours["ttft_s"] > 0
    assert (ours["cost"], ours["mean_shift"]) == (None, 0)


def test_a_stream_says_the_same_as_the_whole_answer(client: OpenAI) -> None:
    wanted = {"model": NAME, "messages": MESSAGES, "max_tokens": 30, "seed": 5, "temperature": 0.8, **ON}
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 30
    assert {c.id for c in chunks} == {chunks[0].id}
    marks = [t for c in chunks if c.choices for t in (c.model_extra or {}).get("moesaic", {}).get("tokens", [])]
    assert "".join(mark["text"] for mark in marks) == text
    assert len(marks) == 30
    assert set(marks[0]) == {"text", "drafted", "lenient", "shift"}


def test_completions_of_text_lists_and_token_ids(client: OpenAI, server: Serving) -> None:
    model = server.engine.model
    wanted = {"model": NAME, "max_tokens": 8, "temperature": 0}
    one = client.completions.create(prompt="hello", **wanted).choices[0].text
    assert one == model.generate("hello", temperature=0, max_tokens=8)
    assert client.completions.create(prompt=model.encode("hello"), **wanted).choices[0].text == one
    both = client.completions.create(prompt=["hello", "how are"], **wanted)
    assert [c.index for c in both.choices] == [0, 1]
    assert both.choices[0].text == one
    ids = client.completions.create(prompt=[model.encode("hello"), model.encode("how are")], **wanted)
    assert [c.text for c in ids.choices] == [c.text for c in both.choices]
    assert both.usage.prompt_tokens == len(model.encode("hello")) + len(model.encode("how are"))
    streamed = ["", ""]
    for chunk in client.completions.create(prompt=["hello", "how are"], stream=True, **wanted):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [c.text for c in both.choices]


def test_several_answers_have_seeds_that_count_up(client: OpenAI) -> None:
    wanted = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, **ON}
    three = client.chat.completions.create(**wanted, n=3, seed=7)
    alone = [client.chat.completions.create(**wanted, seed=7 + i).choices[0].message.content for i in range(3)]
    assert [c.message.content for c in three.choices] == alone
    assert len(set(alone)) == 3
    assert three.usage.completion_tokens == 36
    assert three.usage.prompt_tokens * 1 == three.usage.total_tokens - 36


def test_without_a_seed_answers_differ(client: OpenAI) -> None:
    wanted = {"model": NAME, "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, **ON}
    answers = {client.chat.completions.create(**wanted).choices[0].message.content for _ in range(3)}
    assert len(answers) == 3


def test_logprobs_in_both_shapes(client: OpenAI, server: Serving) -> None:
    chat = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy
    legacy = client.completions.create(model=NAME, prompt="hello", max_tokens=6, temperature=0, logprobs=2).choices[0]
    assert len(legacy.logprobs.tokens) == len(legacy.logprobs.token_logprobs) == len(legacy.logprobs.text_offset) == 6
    assert all(1 <= len(top) <= 2 for top in legacy.logprobs.top_logprobs)
    assert legacy.logprobs.text_offset[0] == 0


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client: OpenAI, server: Serving) -> None:
    wanted = {"model": NAME, "prompt": "hello", "temperature": 0}
    whole = client.completions.create(**wanted, max_tokens=60).choices[0].text
    stop = whole[20:23]
    cut = client.completions.create(**wanted, max_tokens=60, stop=[stop])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 60
    until(server.idle, "the engine has stopped too")


def test_the_engine_does_not_write_on_after_a_stop_text(client: OpenAI, server: Serving) -> None:
    wanted = {"model": NAME, "prompt": "hello", "temperature": 0, **ON}
    stop = client.completions.create(**wanted, max_tokens=60).choices[0].text[20:23]
    before = server.service.totals.steps
    server.steps.hold()
    with ThreadPoolExecutor() as pool:
        cut = pool.submit(client.completions.create, **wanted, max_tokens=200, stop=[stop])

        def ended() -> bool:
            if server.steps.waiting.is_set():
                server.steps.allow(1)
            return cut.done()

        until(ended, "the answer ends")
        assert cut.result().choices[0].finish_reason == "stop"
    assert server.service.totals.steps - before < 100


def test_stop_tokens_and_ignore_eos(client: OpenAI, server: Serving) -> None:
    first = next(server.engine.model.steps("hello", temperature=0)).token
    wanted = {"model": NAME, "prompt": "hello", "temperature": 0, "max_tokens": 5}
    cut = client.completions.create(**wanted, extra_body={"stop_token_ids": [first]})
    assert (cut.choices[0].text, cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("", "stop", 1)
    end = server.engine.model.stop_ids[0]
    forced = {"logit_bias": {str(end): 100}}
    assert client.completions.create(**wanted, **forced).choices[0].finish_reason == "stop"
    on = client.completions.create(**wanted, **forced, extra_body={"ignore_eos": True})
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", 5)


def test_without_a_limit_the_context_ends_a_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=NAME, messages=MESSAGES, extra_body={"ignore_eos": True})
    assert reply.usage.total_tokens == CONTEXT
    assert reply.choices[0].finish_reason == "length"


def test_a_stream_that_is_closed_leaves_the_engine(client: OpenAI, server: Serving) -> None:
    server.steps.hold()
    stream = client.chat.completions.create(model=NAME, messages=MESSAGES, stream=True, extra_body={"ignore_eos": True})
    server.steps.allow(3)
    next(iter(stream))
    assert not server.idle()
    stream.close()
    server.steps.release()
    until(server.idle, "the request is given up")
    assert server.service.totals.new_tokens < 10_000


def test_models_and_tokens(client: OpenAI, server: Serving) -> None:
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    with server.client() as http:
        found = http.post("/tokenize", json={"prompt": "hello there"}).json()
        assert found["tokens"] == server.engine.model.tokenizer.encode("hello there")
        assert found["count"] == len(found["tokens"])
        assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "hello there"}
        chat = http.post("/tokenize", json={"messages": MESSAGES}).json()
        assert chat["tokens"] == server.engine.model.encode(MESSAGES)


def test_mistakes_are_the_clients_own_exceptions(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as found:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert found.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model=NAME, messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_field")
    with pytest.raises(BadRequestError) as long:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hello " * 2000}])
    assert long.value.code == "context_length_exceeded"


def test_keys_and_limits(served_model: Path) -> None:
    with serving(served_model, guard=Guard(["right"], max_concurrent=1)) as server:
        wanted = {"model": NAME, "messages": MESSAGES, "max_tokens": 5}
        wrong = OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(AuthenticationError) as refused:
            wrong.chat.completions.create(**wanted)
        assert refused.value.code == "invalid_api_key"
        right = OpenAI(base_url=f"{server.address}/v1", api_key="right", max_retries=0)
        assert right.chat.completions.create(**wanted).usage.completion_tokens == 5
        server.steps.hold()
        stream = right.chat.completions.create(**wanted, stream=True)
        next(iter(stream))
        with pytest.raises(RateLimitError, match="1 requests of this key are running, and 1 may") as busy:
            right.chat.completions.create(**wanted)
        assert int(busy.value.response.headers["retry-after"]) >= 1
        stream.close()


def test_what_the_server_gives_up_is_an_error_not_a_short_answer(client: OpenAI, server: Serving) -> None:
    server.steps.hold()
    stream = client.chat.completions.create(model=NAME, messages=MESSAGES, stream=True)
    server.steps.allow(2)
    for number in list(server.service.active):
        server.engine.cancel(number)
    server.steps.release()
    with pytest.raises(APIError, match="gave this answer up"):
        list(stream)


def test_guesses_are_counted_and_marked(served_model: Path, server: Serving) -> None:
    wanted = {"model": NAME, "prompt": "hello there", "max_tokens": 120, "temperature": 0, **ON}
    with serving(served_model, EngineSettings(draft="lookup", draft_length=3)) as drafting:
        client = OpenAI(base_url=f"{drafting.address}/v1", api_key="none", max_retries=0)
        chunks = list(client.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
        plain = client.completions.create(**wanted | {"extra_body": {"ignore_eos": True, "speculate": False}})
        totals = drafting.service.totals
    usage = chunks[-1].usage
    details = usage.completion_tokens_details
    marks = [t for c in chunks for t in (c.model_extra or {}).get("moesaic", {}).get("tokens", [])]
    assert details.accepted_prediction_tokens == sum(t["drafted"] for t in marks) == totals.accepted > 0
    assert details.rejected_prediction_tokens == totals.drafted - totals.accepted
    assert usage.model_extra["moesaic"]["mean_shift"] == 0
    assert "".join(c.choices[0].text for c in chunks if c.choices) == plain.choices[0].text
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
