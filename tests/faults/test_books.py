"""Everything is accounted for: found = used + each reason, in all that a run says of a folder of oddities."""

import csv
import html.parser
import json
import os
import re
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers_command import Command
from helpers_oddities import DEADLY, LONGEST_S, build

from birdtune.dataset.recordings import PROBLEMS

# Made by what happens while a run looks, and tried where that is tried.
PASSING = {"vanished", "changed", "storage-failed"}

# Python's own place for what a process does first. A worker that opens the deadly file dies as by a fault in C.
SITE = f"""
import multiprocessing, os, signal, sys
def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith({DEADLY!r}) and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.{signal.SIGSEGV.name})
sys.addaudithook(note)
"""
