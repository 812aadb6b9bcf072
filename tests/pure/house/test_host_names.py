"""What a host lacks is no answer: each plain look-up by name says why an absence is known."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HOSTS = Path(__file__).parents[3] / "vllm_layershard" / "hosts"

ABSENT = {
    ("ascend/taken_weights.py", "impl"): "layers of a model that are no attention have none",
    ("ascend/taken_weights.py", "name"): "an attention that takes no weights has no such linears",
    ("ascend/taken_weights.py", "enable_mlapo"): "of one class of attention; read, and not run",
    ("ascend/taken_weights.py", "fa_quant_layer"): "of one class of attention; read, and not run",
    ("ascend/taken_weights.py", "wq_b"): "of sparse attention alone",
    ("ascend/taken_weights.py", "enable_sfa_prolog_v3"): "vllm-ascend 0.23 and 0.24 alone",
    ("ascend/taken_weights.py", "enable_sparse_sfa_c8"): "of sparse attention alone",
    ("ascend/taken_weights.py", "is_kv_consumer"): "of some classes of attention",
    ("ascend/taken_weights.py", "is_kv_producer"): "of some classes of attention",
    ("ascend/taken_weights.py", "preprocess_type"): "of sparse attention since 0.25 alone",
    ("ascend/taken_weights.py", "quant_method"): "a linear that is not quantised has none",
    ("ascend/taken_weights.py", "get_ascend_device_type"): "asked for 0.22 to 0.24 alone",
    ("cpu_dp.py", "CpuCommunicator"): "the patch itself then says what is gone",
    ("exchange/excluded.py", "flashcomm2_enable"): "vllm-ascend has none since 0.25",
    ("exchange/whole_linears.py", "weight_loader"): "a tensor may have none",
    ("exchange/whole_linears.py", "__module__"): "Python's own: a partial function has none",
    ("exchange/whole_linears.py", "quant_method"): "vLLM's own methods have none within them",
    ("exclusions.py", "enable_sp"): "vLLM has none since 0.32",
    ("exclusions.py", "kv_source_layer_ids"): "a field of some models' config.json",
    ("ffn/mlps.py", "weight_block_size"): "a linear without blocks has none",
    ("ffn/part.py", "layershard_part"): "our own",
    ("graphs/fusions.py", "__name__"): "Python's own: not every callable has one",
    ("graphs/hidden.py", "_shared_experts"): "names.SHARED_EXPERTS is asked of what must have one",
    ("graphs/hidden.py", "quant_method"): "a module that is no linear has none",
    ("graphs/hidden.py", "waits_itself"): "our own",
    ("identity.py", "_commit_hash"): "transformers': a local checkpoint has none",
    ("linears.py", "get_language_model"): "names.SUPPORTS_MULTIMODAL tells who must have one",
    ("linears.py", "qrep_active"): "names.DCP_LINEAR tells who must have one",
    ("linears.py", "scheme"): "for a message alone",
    ("linears.py", "uses_meta_device"): "names.USES_META_DEVICE is asked of vLLM's own base class",
    ("moves/rows.py", "_SCALES"): "a linear that is not quantised has none",
    ("moves/rows.py", "name"): "a linear that is not quantised has fewer sizes",
    ("names.py", "self.symbol.rpartition('.')[2]"): "this is where an absence becomes an error",
    ("patch.py", "_ORIGINAL"): "our own",
    ("patch.py", "self.attribute"): "asks whether it is replaced",
    ("patch.py", "__mro__"): "Python's own: a module has none",
    ("reload/unfinished.py", "_original_do_torchao_reload"): "set once a reload has begun",
    ("replicas/raw_weight.py", "weight_loader_numel"): "of parameters that are padded",
    ("replicas/raw_weight.py", "weight_loader"): "a tensor may have none, and has vLLM's default",
    ("settings.py", "args"): "of online quantisation alone; each linear is asked, too",
    ("settings.py", "linear"): "of online quantisation alone; each linear is asked, too",
    ("sharded_linear.py", "_use_min_latency_gemm"): "graphs/reads.py finds what is read elsewhere",
    ("sharded_linear.py", "enable_dsa_cp"): "an absence becomes an error there",
    ("sharded_linear.py", "custom_op"): "of vllm-ascend's linears alone",
    ("sharded_linear.py", "update_attrs"): "graphs/reads.py finds a method that does not wait",
}
"""File and name -> why the absence of the name is understood there."""

GONE = {
    ("graphs/inductor.py", "(AttributeError, TypeError)"): "torch's own: a warning that names it",
    (
        "identity.py",
        "(AbsentError, UnreadableError, ValueError, KeyError, TypeError, AttributeError)",
    ): "of a file's contents",
    ("names.py", "ImportError"): "an error that names it",
    ("patch.py", "ModuleNotFoundError"): "an error that names it",
    ("patch.py", "(ImportError, AttributeError)"): "an error that names it",
    ("reload/unfinished.py", "(AttributeError, ImportError)"): "an error that names it",
}
"""File and what is caught -> what a host that lacks the name leads to."""

_OF_NAMES = {"AttributeError", "ImportError", "ModuleNotFoundError"}


def looked_up(source: str) -> Iterator[str]:
    """What `getattr` with a default and `hasattr` ask for; a name's own text, if it is written."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3):
            asked = node.args[1]
            yield asked.value if isinstance(asked, ast.Constant) else ast.unparse(asked)


def caught(source: str) -> Iterator[str]:
    """Of errors that the absence of a name is, as they are written."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            names = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}
            if names & _OF_NAMES:
                yield ast.unparse(node.type)


def found_in_hosts(find) -> set[tuple[str, str]]:
    return {
        (str(path.relative_to(HOSTS)), found)
        for path in HOSTS.rglob("*.py")
        for found in find(path.read_text())
    }


def test_each_look_up_that_has_a_default_says_why():
    assert found_in_hosts(looked_up) == set(ABSENT)


def test_nobody_else_catches_the_absence_of_a_name():
    assert found_in_hosts(caught) == set(GONE)


def test_a_look_up_and_what_is_caught_are_found():
    source = """
try:
    from vllm import envs
    on = getattr(envs, "ON", False) or hasattr(envs, name) or getattr(envs, "OTHER")
except (ImportError, KeyError):
    on = False
except OSError:
    raise
"""
    assert list(looked_up(source)) == ["ON", "name"]
    assert list(caught(source)) == ["(ImportError, KeyError)"]
