"""The CIFAR-10 nets of section 3.3 (footnote 3), from cuda-convnet, with and without norms.

Two convolutions, two locally connected layers (like convolutions, but with filters of their own at each
place) and one fully connected layer: `example-layers/layers-conv-local-13pct.cfg` and `-11pct.cfg`.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax import layers
from alexnet_jax.model import ACTIVATIONS, AlexNet, check_images

Array = jax.Array

# initW of both files; all biases start at 0.
STDS = {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}


class ConvLocal(AlexNet):
    """Images `[B, 24, 24, 3]` float32, 0-255 minus the mean, to logits `[B, num_classes]`; one column.

    Defaults are those of the 11 % net; the 13 % net has no norms and 32 filters in local3. Of `AlexNet`'s
    fields only `SWITCHES` have a meaning here.
    """

    SWITCHES: ClassVar[tuple[str, ...]] = (
        *("num_classes", "norm", "lrn_k", "lrn_alpha", "lrn_beta", "lrn_size", "pool_ties"),
        *("local_widths", "activation", "compute_dtype"),
    )

    columns: int = 1
    lrn_k: float = 1.0
    lrn_alpha: float = 0.001 / 9  # the file's scale of 0.001, which the code divides by the size
    lrn_size: int = 9
    pool_ties: str = "all"  # kLocalMaxUndo (conv_util.cu)
    local_widths: tuple[int, int] = (64, 32)  # filters at each place of local3 and local4

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, example_ids: Array | None = None) -> Array:
        """Computes logits `[B, num_classes]` float32; nothing in this net differs in training.

        Raises:
          UserError: the images have another shape or type.
        """
        del train, example_ids
        check_images(images)
        norms = {"pool1": "lrn1", "activation2": "lrn2"} if self.norm else {}

        def then(name: str, x: Array) -> Array:
            """The operation `name`, and the norm that follows it."""
            if name.startswith("pool"):
                x = layers.max_pool(x, 3, 2, name=name, ties=self.pool_ties)
            else:
                x = ACTIVATIONS[self.activation](x)
            self._record(name, [x])
            if name not in norms:
                return x
            constants = {"alpha": self.lrn_alpha, "beta": self.lrn_beta, "size": self.lrn_size}
            return self._record(norms[name], [layers.local_response_norm(x, k=self.lrn_k, **constants)])[0]

        x = images.astype(self.compute_dtype)  # [B, 24, 24, 3]
        x = then("activation1", self._convolution("conv1", x))  # [B, 24, 24, 64]
        x = then("pool1", x)  # [B, 12, 12, 64]
        x = then("activation2", self._convolution("conv2", x))  # [B, 12, 12, 64]
        x = then("pool2", x)  # [B, 6, 6, 64]
        x = then("activation3", self._local("local3", x, self.local_widths[0]))  # [B, 6, 6, 64]
        x = then("activation4", self._local("local4", x, self.local_widths[1]))  # [B, 6, 6, 32]
        kernel, bias = self._weights("fc10", (x[0].size, self.num_classes), (self.num_classes,))
        return self._record("fc10", layers.dense([x], kernel[None], [bias], jnp.float32))[0]

    def _convolution(self, name: str, x: Array) -> Array:
        """64 filters of 5 x 5, which keep the maps' size."""
        kernel, bias = self._weights(name, (5, 5, x.shape[3], 64), (64,))
        y: Any = layers.convolution(x, kernel.astype(x.dtype), padding=2, name=name)
        return self._record(name, [y + bias.astype(y.dtype)])[0]

    def _local(self, name: str, x: Array, filters: int) -> Array:
        """Windows of 3 x 3, which keep the maps' size; each place has its own filters and biases."""
        _, height, width, inputs = x.shape
        kernel, bias = self._weights(name, (height, width, 3, 3, inputs, filters), (height, width, filters))
        y = locally_connected(x, kernel.astype(x.dtype))
        return self._record(name, [y + bias.astype(y.dtype)])[0]

    def _weights(self, name: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> tuple[Array, Array]:
        """Both without the leading axis of columns, which the stored ones have."""
        init = nn.initializers.normal(STDS[name]), nn.initializers.zeros
        stored = layers.Parameters(name=name)(init, (1, *kernel), (1, *bias))
        return stored[0][0], stored[1][0]


def locally_connected(x: Array, kernel: Array) -> Array:
    """A convolution whose filters differ from place to place; zeros beyond the edges.

    Args:
      x: `[B, H, W, I]`; kernel: `[H, W, w, w, I, O]` with w odd, not flipped.

    Returns:
      `[B, H, W, O]`.
    """
    batch, height, width, _ = x.shape
    window, outputs = kernel.shape[2], kernel.shape[5]
    before = window // 2
    padded = jnp.pad(x, ((0, 0), (before, before), (before, before), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]
    # What each window sees, place by place: one product for each place, [B, w * w * I] by [w * w * I, O].
    seen = jnp.stack(shifted, axis=3).reshape(batch, height * width, -1).swapaxes(0, 1)
    products = seen @ kernel.reshape(height * width, -1, outputs)
    return products.swapaxes(0, 1).reshape(batch, height, width, outputs)
