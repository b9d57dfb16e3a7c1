"""Published rows as cases: what is read from them, what is scored, and how near the shipped constants come."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from calibrate_serving import PRIORS, fit, table_of, with_spreads

from moesaic.plan.serving.profile import from_table, profile
from moesaic.plan.serving.rows import Case, cases, predict, validation_rows
from moesaic.plan.shapes import serving_shape, shape_for_row

# Rows of published_measurements.csv, the columns that serving reads; sources in the notes.
ROWS = """\
id,category,split,model,device,n_devices,tp,pp,dp,ep,global_batch_seqs,micro_batch,precision,input_len,output_len,metric,unit,value,source,notes,n_layers,d_model,n_heads,n_kv_heads,d_ff,ffn,vocab,params_b
decode-1,infer,fit,GPT 13B,A100-40G-SXM,1,1,1,,,,1,fp16,512,10,tpot,ms,22.0,kipply; cli99 examples/fastertransformer,,40,5120,40,40,20480,gelu,50272,12.8
static-a100,infer,fit,LLaMA 7B,A100-80G-SXM,1,1,1,,,64,,fp16,128,128,output_tokens_per_s,tok/s,3486,TensorRT-LLM release 0.5.0,static batch,,,,,,,,
static-70b,infer,check,Llama-2 70B,A100-80G-SXM,4,4,1,,,64,,fp16,128,128,output_tokens_per_s,tok/s,1237,TensorRT-LLM release 0.5.0,static batch,,,,,,,,
vllm-32b,infer,check,Qwen3-32B,H100-80G-SXM,2,2,1,,1,32,,bf16,1024,1024,tpot,ms,20.06,aic vllm,TTFT 236.8 ms; continuous batching,,,,,,,,
trtllm-8b,infer,check,Llama-3 8B,H100-80G-SXM,1,1,1,1,,32,,bf16,1024,128,tpot,ms,13.187,aic,TTFT 127.9 ms; trtllm 1.0.0rc3,,,,,,,,
vllm-70b-fp8,infer,fit,Llama-3.3 70B,H200-141G-SXM,4,4,1,1,,16,,fp8,1024,1024,tpot,ms,10.937,aic,TTFT 126.2 ms; vllm,,,,,,,,
per-gpu,infer,fit,DeepSeek-R1,B200,8,1,1,8,8,3072,,nvfp4,1024,2048,output_tokens_per_s_per_gpu,tok/s,4548.0,TensorRT-LLM,FP16 KV; attention DP8,,,,,,,,
mlperf51-x,infer,fit,Mixtral 8x7B,H200-141G-SXM,8,,,,,,,fp8,,,output_tokens_per_s,tok/s,62108,MLPerf,,,,,,,,,
no-load,infer,fit,Llama-3 8B,H200-141G-SXM,1,1,1,,,,,fp8,128,2048,output_tokens_per_s,tok/s,26221,TensorRT-LLM,concurrency not stated,,,,,,,,
odd-layout,infer,fit,DeepSeek-R1,GB200,72,72,1,1,1,1024,,fp8,1024,1024,tpot,ms,24.2,aic sglang,TTFT 8553.3 ms,,,,,,,,
mtp,infer,fit,DeepSeek-R1,B200,8,8,1,,2,1,,nvfp4,1024,2048,output_tokens_per_s,tok/s,274,TensorRT-LLM,MTP 3 drafts,,,,,,,,
seconds,infer,fit,Llama-3 8B,H100-80G-SXM,1,,,,,32,,bf16,1024,128,tpot,s,0.013187,aic,trtllm,,,,,,,,
node,infer,fit,DeepSeek-R1,B200,8,1,1,8,8,3072,,nvfp4,1024,2048,output_tokens_per_s_per_node,tok/s,36384,TensorRT-LLM,FP16 KV,,,,,,,,
other,infer,fit,Llama-3 8B,H100-80G-SXM,1,1,1,,,32,,bf16,1024,128,latency,ms,9,aic,trtllm,,,,,,,,
training,train,fit,GPT-3,A100-80G-SXM,8,8,1,,,64,,bf16,,,tflops,TFLOP/s,140,x,,,,,,,,,
"""  # noqa: E501


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(ROWS)))


def found() -> dict[str, Case]:
    return {c.id: c for c in cases(rows())}


def test_a_row_becomes_a_case_and_its_first_token_another() -> None:
    out = found()
    assert "training" not in out
    decode, first = out["vllm-32b"], out["vllm-32b:ttft"]
    assert (decode.engine, decode.concurrency, decode.partition) == ("vllm", 32, "decode")
    assert (first.published, first.unit, first.partition) == (236.8, "ms", "first token")
    assert decode.model is not None
    assert (decode.model.tp, decode.model.shape.name) == (2, "qwen3-32b")
    assert out["static-70b"].engine == "static"
    assert out["decode-1"].engine == "static"
    assert out["decode-1"].concurrency == 1
    assert out["trtllm-8b"].engine == "trtllm"
    assert out["per-gpu"].model is not None
    assert (out["per-gpu"].model.kv, out["per-gpu"].model.expert_tp) == ("bf16", 1)


def test_what_is_scored_and_why_not() -> None:
    out = found()
    assert {c.id for c in out.values() if c.scored} == {
        "decode-1", "static-a100", "static-70b", "seconds", "vllm-32b", "vllm-32b:ttft", "trtllm-8b", "trtllm-8b:ttft",
    }  # fmt: skip
    assert "fp8: listed, not scored" in out["vllm-70b-fp8"].reason
    assert "MLPerf" in out["mlperf51-x"].reason
    assert "concurrency not stated" in out["no-load"].reason
    assert "72 does not divide 128 heads" in out["odd-layout"].reason
    assert "not a quantity that is modelled" in out["other"].reason
    assert "acceptance unknown" in out["mtp"].reason
    assert all(c.reason for c in out.values() if not c.scored)


def test_the_shipped_constants_come_near_rows_that_they_were_not_fitted_to() -> None:
    errors = {"decode": [], "first token": []}  # type: dict[str, list[float]]
    for case in found().values():
        if case.split == "check" and case.scored:
            errors[case.partition].append(abs(predict(case, profile()) / case.published - 1))
    assert np.mean(errors["decode"]) < 0.12
    assert np.mean(errors["first token"]) < 0.20


def test_units_of_time_and_of_rate() -> None:
    out = found()
    assert predict(out["seconds"], profile()) == pytest.approx(predict(out["trtllm-8b"], profile()) / 1000)
    assert predict(out["node"], profile()) == pytest.approx(8 * predict(out["per-gpu"], profile()))


def test_validation_rows_carry_an_interval_or_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS, encoding="utf-8")
    out = {r.id: r for r in validation_rows(path)}
    assert len(out) == len(found())
    for row in out.values():
        assert row.predicted is not None or row.reason
        if row.predicted:
            assert row.predicted.p10 < row.predicted.p50 < row.predicted.p90
    # Throughput over 8 devices against 1: the unit is per device.
    assert out["per-gpu"].predicted is not None
    assert 0.5 < out["per-gpu"].predicted.p50 / 4548 < 2


def test_a_hybrid_has_its_published_size() -> None:
    row = {"model": "Qwen3.5-397B-A17B"}
    shape = serving_shape(row)
    assert shape is not None
    assert shape.total_parameters == pytest.approx(397e9, rel=0.01)
    assert shape.active_parameters == pytest.approx(17e9, rel=0.03)
    assert shape.window == 2 * 64 * 128 * 128 * 4 / (2 * 2 * 256 * 2)  # its state in bytes, over a token's cache
    assert shape_for_row(row) is None  # training is not priced: its arithmetic is another
    assert serving_shape({"model": "Nemotron-3-Super"}) is None


def test_a_fit_finds_constants_that_made_the_rows() -> None:
    pytest.importorskip("scipy")
    truth = {k: v for k, (v, _) in PRIORS.items()}
    truth |= {"shared.layer_s": 45e-6, "generation.h100.hbm": 0.7}
    made = from_table(table_of(truth))
    mine = [c for c in found().values() if c.comparable and c.partition == "decode"]
    many = []
    for case in mine:
        assert case.model is not None
        published = predict(case, made)
        many.append(Case(**{**vars(case), "published": published}))
    values = fit(many)
    before = np.abs(
        [np.log(predict(c, from_table(table_of({k: v for k, (v, _) in PRIORS.items()}))) / c.published) for c in many]
    )
    after = np.abs([np.log(predict(c, from_table(table_of(values))) / c.published) for c in many])
    assert after.mean() < 0.3 * before.mean()
    spreads = with_spreads(values, many, np.full(len(many), 0.2))
    assert spreads["engine.vllm.sigma_decode"] == pytest.approx(0.2 / 1.2816, rel=1e-3)
