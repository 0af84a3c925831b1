"""A program that comes to grief as AFTER, CODE, LISTEN_AFTER, MEMORY_MB and RAISE say."""
import http.server
import os
import sys
import threading
import time

if os.environ.get("RAISE"):
    raise RuntimeError(os.environ["RAISE"])
if "MEMORY_MB" in os.environ:
    held = [bytearray(1 << 20) for _ in range(int(os.environ["MEMORY_MB"]))]
if "AFTER" in os.environ:
    time.sleep(float(os.environ["AFTER"]))
    print("giving up", file=sys.stderr, flush=True)
    sys.exit(int(os.environ.get("CODE", "1")))
time.sleep(float(os.environ.get("LISTEN_AFTER", "0")))
http.server.test(http.server.SimpleHTTPRequestHandler, http.server.ThreadingHTTPServer, port=8000, bind="0.0.0.0")
