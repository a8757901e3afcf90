"""Nets for other programs: the StableHLO function, and the command."""

import jax.export
import numpy as np
import pytest

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.tools import export
from alexnet_jax.weights import pretrained
from tests.tools.test_features import net  # noqa: F401  (a fixture)


@pytest.mark.slow
def test_stablehlo_is_the_same_function(net):  # noqa: F811
    loaded = pretrained.read(net)
    function = jax.export.deserialize(bytearray(export.stablehlo(loaded)))
    assert set(function.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    images = np.random.default_rng(0).integers(0, 256, (3, 72, 72, 3), dtype=np.uint8)
    expected = loaded.model.apply(loaded.variables, loaded.preprocess.view(images))
    np.testing.assert_allclose(function.call(images), expected, rtol=1e-4, atol=1e-6)
    assert function.call(images[:1]).shape == (1, 5)  # any batch


def test_all_layers_are_needed(tmp_path, net):  # noqa: F811
    loaded = pretrained.read(net)
    params = {name: layer for name, layer in loaded.variables["params"].items() if name != "fc8"}
    pretrained.save_pretrained(tmp_path / "w.npz", loaded.model, {"params": params}, loaded.preprocess)
    with pytest.raises(UserError, match=r"w.npz: no classifier \(fc8 missing\)"):
        export.stablehlo(pretrained.read(tmp_path / "w.npz", partial=True))


@pytest.mark.parametrize("ending", ["safetensors", "npz", "stablehlo"])
def test_the_command(tmp_path, net, ending):  # noqa: F811
    out = tmp_path / f"w.{ending}"
    assert __main__.main(["export", str(net), str(out)]) == 0
    assert out.stat().st_size > 100_000 and len(list(tmp_path.iterdir())) == 1
    if ending != "stablehlo":
        assert pretrained.read(out).classes == ("ant", "bee", "cat", "dog", "elk")
    with pytest.raises(UserError, match=r"out: .*w.onnx: must end in .safetensors or .npz or .stablehlo"):
        __main__.main(["export", str(net), str(tmp_path / "w.onnx")])
