"""One worker without any exchange: what all others are measured against.

python -m lanbench.alone STEP_S
"""

from __future__ import annotations

import sys

from lanbench.fake_device import Device
from lanbench.steps import told

if __name__ == "__main__":
    device = Device(float(sys.argv[1]))
    told(device.step)
