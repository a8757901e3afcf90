"""An independent reference in float64 NumPy, one window after another, written from the paper's text.

Shares neither code nor method with the package. Maps are `[B, H, W, C]` and kernels `[h, w, I, O]`.
"""

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Params = dict[str, dict[str, Array]]  # by layer: kernel and bias, each with a leading axis of columns


def starts(size: int, window: int, stride: int, padding: int = 0, ceil: bool = True) -> list[int]:
    """Where the windows along an axis start: every `stride`, until the last position is covered.

    With `ceil` the last window may extend beyond the end; without it, only windows that fit count.
    """
    end = size + padding
    places = [-padding]
    while places[-1] + window < end:
        places.append(places[-1] + stride)
    if not ceil and places[-1] + window > end:
        places.pop()
    return places


def convolution(
    x: Array, kernel: Array, bias: Array, *, stride: int = 1, padding: int = 0, ceil: bool = True
) -> Array:
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    window, room = kernel.shape[0], kernel.shape[0] + stride
    padded = np.pad(x, ((0, 0), (padding, padding + room), (padding, padding + room), (0, 0)))
    rows, cols = (starts(size, window, stride, padding, ceil) for size in x.shape[1:3])
    out = np.zeros((x.shape[0], len(rows), len(cols), kernel.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(cols):
            patch = padded[
                :, padding + top : padding + top + window, padding + left : padding + left + window
            ]
            out[:, i, j] = np.tensordot(patch, kernel, axes=3) + bias
    return out


def max_pool(x: Array, window: int, stride: int, ceil: bool = True) -> Array:
    rows, cols = (starts(size, window, stride, 0, ceil) for size in x.shape[1:3])
    out = np.zeros((x.shape[0], len(rows), len(cols), x.shape[3]))
    for i, top in enumerate(rows):
        for j, left in enumerate(cols):
            out[:, i, j] = x[:, top : top + window, left : left + window].max(axis=(1, 2))
    return out


def max_pool_gradient(x: Array, g: Array, window: int, stride: int, ceil: bool = True) -> Array:
    """Each `g` goes to the first maximum in its window, in row-major order."""
    rows, cols = (starts(size, window, stride, 0, ceil) for size in x.shape[1:3])
    out = np.zeros(x.shape)
    for b, i, j, c in np.ndindex(g.shape):
        patch = x[b, rows[i] : rows[i] + window, cols[j] : cols[j] + window, c]
        row, col = np.unravel_index(np.argmax(patch), patch.shape)
        out[b, rows[i] + row, cols[j] + col, c] += g[b, i, j, c]
    return out


def local_max_undo(imgs: Array, max_grads: Array, max_acts: Array, window: int, stride: int) -> Array:
    """cuda-convnet's `kLocalMaxUndo` (src/cudaconv2/conv_util.cu:1512-1559): each pixel asks its windows."""
    out = np.zeros(imgs.shape)
    rows, cols = max_acts.shape[1:3]
    for b, y, x, c in np.ndindex(imgs.shape):
        first_y = 0 if y < window else 1 + (y - window) // stride
        first_x = 0 if x < window else 1 + (x - window) // stride
        for my in range(first_y, min(rows, 1 + y // stride)):
            for mx in range(first_x, min(cols, 1 + x // stride)):
                out[b, y, x, c] += (imgs[b, y, x, c] == max_acts[b, my, mx, c]) * max_grads[b, my, mx, c]
    return out


def _wide(x: Array) -> Array:
    """Converts to double precision; complex stays complex, for derivatives."""
    x = np.asarray(x)
    return x.astype(np.result_type(x.dtype, np.float64))


def local_response_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Section 3.3: the sum runs over max(0, i - n/2) to min(N - 1, i + n/2)."""
    x = _wide(x)
    channels, half = x.shape[-1], size // 2
    out = np.zeros_like(x)
    for i in range(channels):
        near = x[..., max(0, i - half) : min(channels - 1, i + half) + 1]
        out[..., i] = x[..., i] / (k + alpha * (near**2).sum(axis=-1)) ** beta
    return out


def within_map_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    x = _wide(x)
    half = size // 2
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            near = x[:, max(0, i - half) : i + half + 1, max(0, j - half) : j + half + 1]
            out[:, i, j] = x[:, i, j] / (k + alpha * (near**2).sum(axis=(1, 2))) ** beta
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def paper_net(params: Params, images: Array) -> dict[str, Array]:
    """The paper's net at test time: every layer's output, both columns concatenated."""

    def norm(x: Array) -> Array:
        return local_response_norm(x, k=2.0, alpha=1e-4, beta=0.75, size=5)

    return _two_columns(
        params,
        images,
        layer1=[("activation1", relu), ("lrn1", norm), ("pool1", _pool)],
        layer2=[("activation2", relu), ("lrn2", norm), ("pool2", _pool)],
        layer5=[("activation5", relu), ("pool5", _pool)],
    )


def original_net(params: Params, images: Array) -> dict[str, Array]:
    """Run 145: its order of layers, alpha divided by the window, the second norm within maps."""

    def norm(x: Array) -> Array:
        return local_response_norm(x, k=2.0, alpha=1e-4 / 5, beta=0.75, size=5)

    def map_norm(x: Array) -> Array:
        return within_map_norm(x, k=1.0, alpha=0.001 / 25, beta=0.75, size=5)

    return _two_columns(
        params,
        images,
        layer1=[("lrn1", norm), ("pool1", _pool), ("activation1", relu)],
        layer2=[("activation2", relu), ("lrn2", norm), ("map_norm2", map_norm), ("pool2", _pool)],
        layer5=[("pool5", _pool), ("activation5", relu)],
    )


def _pool(x: Array) -> Array:
    return max_pool(x, 3, 2)


Step = tuple[str, Callable[[Array], Array]]


def _two_columns(
    params: Params, images: Array, layer1: list[Step], layer2: list[Step], layer5: list[Step]
) -> dict[str, Array]:
    p = {layer: {k: np.asarray(v, np.float64) for k, v in leaves.items()} for layer, leaves in params.items()}
    out: dict[str, Array] = {}

    def conv(name: str, a: Array, b: Array, stride: int = 1, padding: int = 0) -> tuple[Array, Array]:
        """The first column's filters on `a`, the second's on `b`."""
        k, bias = p[name]["kernel"], p[name]["bias"]
        first = convolution(a, k[0], bias[0], stride=stride, padding=padding)
        second = convolution(b, k[1], bias[1], stride=stride, padding=padding)
        out[name] = np.concatenate([first, second], axis=-1)
        return first, second

    def each(steps: list[Step], a: Array, b: Array) -> tuple[Array, Array]:
        for name, f in steps:
            a, b = f(a), f(b)
            out[name] = np.concatenate([a, b], axis=-1)
        return a, b

    def dense(name: str, x: Array) -> Array:
        k, bias = p[name]["kernel"], p[name]["bias"]
        out[name] = np.concatenate([x @ k[0] + bias[0], x @ k[1] + bias[1]], axis=-1)
        return out[name]

    a, b = conv("conv1", images, images, stride=4)
    a, b = each(layer1, a, b)
    a, b = conv("conv2", a, b, padding=2)
    a, b = each(layer2, a, b)
    both = np.concatenate([a, b], axis=-1)
    a, b = conv("conv3", both, both, padding=1)
    a, b = each([("activation3", relu)], a, b)
    a, b = conv("conv4", a, b, padding=1)
    a, b = each([("activation4", relu)], a, b)
    a, b = conv("conv5", a, b, padding=1)
    a, b = each(layer5, a, b)
    x = np.concatenate([a, b], axis=-1).reshape(images.shape[0], -1)
    for number in (6, 7):
        x = out[f"activation{number}"] = relu(dense(f"fc{number}", x))
        x = out[f"dropout{number}"] = 0.5 * x  # section 4.2: all neurons, outputs halved
    dense("fc8", x)
    return out


def random_params(shapes: dict[str, dict[str, tuple[int, ...]]], seed: int) -> Params:
    """Weights that preserve the activations' scale (He) and non-negligible biases; float32."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            "kernel": rng.standard_normal(leaves["kernel"], np.float32)
            * np.float32(math.sqrt(2 / math.prod(leaves["kernel"][1:-1]))),
            "bias": rng.standard_normal(leaves["bias"], np.float32),
        }
        for layer, leaves in shapes.items()
    }


def relative_error(actual: Array, expected: Array) -> float:
    """Largest deviation, relative to the largest entry of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert np.all(np.isfinite(actual))
    largest = np.abs(expected).max()
    assert largest > 0, "an expected value of all zeros proves nothing"
    return float(np.abs(actual - expected).max() / largest)
