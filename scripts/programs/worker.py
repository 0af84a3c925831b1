"""A worker: no port, a line of work now and then."""
import itertools
import time

for job in itertools.count(1):
    print(f"job {job} done", flush=True)
    time.sleep(0.5)
