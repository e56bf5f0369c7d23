"""Where and in which precision a backbone runs, resolved anew in each process."""

from typing import Any

import torch

from faast_sklearn.errors import DeviceError

__all__ = ["available_devices", "empty_cache", "moments_device", "resolve_device", "resolve_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def available_devices() -> list:
    """List the device types usable in this process, best first.

    Returns
    -------
    list of str
        A subset of ``["cuda", "xpu", "mps", "cpu"]``; ``"cpu"`` is always last.

    Examples
    --------
    >>> from faast_sklearn.backbones.device import available_devices
    >>> available_devices()[-1]
    'cpu'
    """
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        found.append("xpu")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def resolve_device(device: Any = None) -> torch.device:
    """Turn a user's ``device`` into a :class:`torch.device` that exists here.

    Parameters
    ----------
    device : None, "auto", str or torch.device, default=None
        ``None`` and ``"auto"`` take the best available device: CUDA, XPU, MPS, then the CPU.

    Returns
    -------
    torch.device
        With an explicit index for CUDA and XPU, so that ``"cuda"`` and ``"cuda:0"`` give the same
        backbone.

    Raises
    ------
    DeviceError
        If the device is unknown or not available in this process.

    Examples
    --------
    >>> from faast_sklearn.backbones.device import resolve_device
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    available = available_devices()
    if device is None or (isinstance(device, str) and device == "auto"):
        device = available[0]
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device={device!r} is not a torch device; use one of {available} or 'auto'.") from error
    if resolved.type == "meta":
        raise DeviceError("device='meta' holds no data; use 'auto' or a real device.")
    if resolved.type not in available:
        raise DeviceError(
            f"device={str(resolved)!r} is not available in this process; available: {available}. "
            "Use device='auto' to take the best one."
        )
    if resolved.type in ("cuda", "xpu"):
        module = getattr(torch, resolved.type)
        index = module.current_device() if resolved.index is None else resolved.index
        if index >= module.device_count():
            raise DeviceError(
                f"device={str(resolved)!r} does not exist: this process sees {module.device_count()} "
                f"{resolved.type} device(s)."
            )
        resolved = torch.device(resolved.type, index)
    elif resolved.type == "cpu":
        resolved = torch.device("cpu")
    return resolved


def resolve_dtype(dtype: Any, device: Any) -> torch.dtype:
    """Turn a user's ``dtype`` into the :class:`torch.dtype` a backbone runs in.

    Parameters
    ----------
    dtype : "auto", str or torch.dtype
        ``"auto"`` is bfloat16 on CUDA devices with native support and float32 everywhere else.
        float16 overflows in many backbones, so it is used only on request.
    device : torch.device
        As returned by :func:`resolve_device`.

    Returns
    -------
    torch.dtype

    Raises
    ------
    DeviceError
        If the dtype is not supported here, or not on the device.

    Examples
    --------
    >>> import torch
    >>> from faast_sklearn.backbones.device import resolve_dtype
    >>> resolve_dtype("auto", torch.device("cpu"))
    torch.float32
    """
    resolved: Any
    if isinstance(dtype, torch.dtype):
        resolved = dtype
    elif dtype == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        resolved = torch.bfloat16 if native else torch.float32
    else:
        resolved = _DTYPES.get(str(dtype).removeprefix("torch."))
    if resolved not in _DTYPES.values():
        raise DeviceError(f"dtype={dtype!r} is not one of 'auto', {', '.join(map(repr, _DTYPES))}.")
    if resolved == torch.float64 and device.type == "mps":
        raise DeviceError("dtype='float64' does not exist on MPS; use 'float32' or device='cpu'.")
    return resolved


def empty_cache(kind: str) -> None:
    """Give memory that torch keeps on a kind of device back to it."""
    module = getattr(torch, kind, None)
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def moments_device(device: Any) -> torch.device:
    """Return where float64 statistics of features on ``device`` are accumulated.

    They stay on the features' own device, so that no batch travels to the host, except on
    devices without float64 (MPS), where they go to the CPU.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    torch.device
    """
    return torch.device("cpu") if device.type == "mps" else device
