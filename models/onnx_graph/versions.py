"""Which packages made a bundle."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "equipoise",
    "numpy",
    "scipy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "scikit-learn",
    "torch",
    "torchvision",
    "accelerate",
    "timm",
)


def package_versions() -> dict[str, str]:
    """Versions of those that are installed, for a bundle's provenance."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
