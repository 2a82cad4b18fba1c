"""How vLLM's processes wait for one another on a machine without a GPU.

EngineCore and its worker each poll their queue for a whole second after a message before they sleep. Where a GPU
computes, the cores they burn are idle anyway; here the same cores decode pictures and compute the model. Measured on 2
cores with the demo checkpoint: two to four times the requests per second, a fifth to a half of the time to the first
token (``docs/performance.md``).
"""

import time
from typing import Any

POLL_SECONDS = 0.002
"""As long as vLLM's own way lasts after a message: within a step the next one comes sooner."""
NAP_MILLISECONDS = 1
"""A message ends a nap; the bound is for one whose notice was lost, which vLLM itself would find after 5 s."""
NEEDED = {"last_read", "busy_loop_s", "poller", "local_notify_socket"}
"""What ``wait`` below uses of vLLM's reader, as of vllm 0.32."""


def nap_between_messages() -> bool:
    """Change how this process waits for vLLM's shared-memory queue. False where this vLLM has another queue."""
    import zmq
    from vllm.distributed.device_communicators import shm_broadcast

    condition: Any = getattr(shm_broadcast, "SpinCondition", None)
    if condition is None or not set(condition.__init__.__code__.co_names) >= NEEDED:
        return False
    wait_as_vllm_does = condition.wait
    if getattr(wait_as_vllm_does, "naps", False):
        return True

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        since_message = time.monotonic() - self.last_read
        if since_message < POLL_SECONDS or since_message > self.busy_loop_s:
            # Yields the processor and returns; or, after that second, sleeps until there is a message.
            wait_as_vllm_does(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(NAP_MILLISECONDS)):
            self.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    wait.naps = True  # type: ignore[attr-defined]
    condition.wait = wait
    return True
