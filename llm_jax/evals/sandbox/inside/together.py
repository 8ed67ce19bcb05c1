"""A program of several processes, none of which takes more memory than it may, and which together do."""

import os
import time

for _ in range(4):
    if not os.fork():
        held = b'x' * (40 << 20)
        time.sleep(60)
time.sleep(60)
