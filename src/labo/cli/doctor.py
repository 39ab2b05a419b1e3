"""`labo doctor`: versions, hardware and installed extras."""

from __future__ import annotations

import os


def doctor() -> None:
    """Print versions, the hardware and the installed extras of this machine."""
    import torch

    import labo
    from labo import machine

    for name, value in {**machine.versions(), "cores": machine.cores()}.items():
        print(f"{name:16} {value}")
    print(f"{'accelerator':16} {_accelerator(torch)}")
    print(f"{'implementations':16} {', '.join(labo.implementations())}")
    for extra, distributions in machine.extras().items():
        missing = [name for name in distributions if machine.package_version(name) is None]
        status = "complete" if not missing else f"missing {', '.join(missing)}: pip install -e '.[{extra}]'"
        print(f"{'extra ' + extra:16} {status}")
    data = os.environ.get("LABO_DATA")
    print(f"{'LABO_DATA':16} {data or 'not set; cifar10, cifar100, tiny-imagenet and imagenet need --data'}")


def _accelerator(torch: object) -> str:
    cuda = torch.cuda  # pyright: ignore[reportAttributeAccessIssue]
    return cuda.get_device_name() if cuda.is_available() else "none"
