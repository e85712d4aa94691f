"""`import compress` registers the format before and after transformers, and imports neither."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import edited_models
import pytest
import torch

import compress


def run(code: str, *args: object) -> str:
    code = "import sys\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    path = tmp_path_factory.mktemp("hook") / "edited"
    compress.save(edited_models.make("lowrank llama"), path)
    return path


def test_compress_after_transformers_opens_an_edited_checkpoint(edited):
    """The other order is that of test_format's fresh process."""
    done = run(
        """
        from transformers import AutoModelForCausalLM, LlamaForCausalLM
        import compress
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
        print("LOADED", type(model.model.layers[0].self_attn.q_proj).__name__)
        """,
        edited,
    )
    assert "LOADED LowRank" in done


def test_importing_compress_imports_neither_torch_nor_transformers():
    seen = run("import compress; print(sorted({'torch', 'transformers'} & set(sys.modules)))")
    assert seen.strip() == "[]"


ORDERS = {
    "compress first": "install(); import transformers.quantizers",
    "the registry itself": "install(); import transformers.quantizers.auto",
    "the registry first": "import transformers.quantizers.auto; install()",
    "only the package first": "import transformers; install(); import transformers.quantizers",
    "installed twice": "install(); install(); import transformers.quantizers",
    "found but not yet imported": (
        "install(); import importlib.util; import transformers; "
        "importlib.util.find_spec('transformers.quantizers'); import transformers.quantizers.auto"
    ),
    "after a failed import": """
install()
try:
    import transformers.broken
except ZeroDivisionError:
    pass
import transformers.quantizers
""",
}


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_registers_once_and_leaves_no_finder(tmp_path, order):
    """On a stand-in for transformers, which takes no seconds to import."""
    package = tmp_path / "transformers"
    (package / "quantizers").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "broken.py").write_text("import transformers.quantizers.auto; 1 / 0")
    (package / "quantizers" / "__init__.py").write_text("from . import auto")
    (package / "quantizers" / "auto.py").write_text("def register_quantizer(name): ...")
    start = """
        from compress.checkpoints import hook
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, hook.RegistryFinder)]
        sys.path.insert(0, sys.argv[1])
        hook._register = lambda: print("REGISTERED")
        install = hook.install
        finders = list(sys.meta_path)
    """
    end = "\nassert sys.meta_path == finders, sys.meta_path"
    code = textwrap.dedent(start) + ORDERS[order] + end
    assert run(code, tmp_path).split() == ["REGISTERED"]


def test_here_it_is_registered_once(edited):
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from compress.checkpoints.format import CompressQuantizer, register

    register()
    register()
    assert AUTO_QUANTIZER_MAPPING["compress"] is CompressQuantizer
    assert torch.is_tensor(compress.load(edited).model.norm.weight)
