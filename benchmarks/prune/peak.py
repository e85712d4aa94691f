"""Peak anonymous memory of this process while a job runs."""

import threading
import time


def anonymous_bytes() -> int:
    """Anonymous memory of this process, which mapped weight files don't count towards."""
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


class Peak:
    """Samples anonymous memory every 10 ms until it is left."""

    def __enter__(self):
        self.value, self.going = anonymous_bytes(), True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self):
        while self.going:
            self.value = max(self.value, anonymous_bytes())
            time.sleep(0.01)

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
