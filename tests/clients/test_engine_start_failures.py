"""The engine itself does not start: the line says why, in the words of the process that knows."""

from pathlib import Path

from tests.support.serve import Server, started_server

START_SECONDS = 150


def said_at_its_end(server: Server) -> str:
    """The last line; there must be no other that explains."""
    assert server.process.wait(START_SECONDS) == 1
    text = server.terminal
    assert "Traceback" not in text
    assert "root cause" not in text
    return text.splitlines()[-1]


def test_a_kv_cache_that_is_too_small_for_the_context(tmp_path: Path) -> None:
    flags = ("--engine-arg", "num_gpu_blocks_override=4")
    with started_server("llava-tiny-1.5", tmp_path / "terminal.txt", *flags) as server:
        line = said_at_its_end(server)
    assert line.startswith("llava-api: the engine could not load the checkpoint: To serve at least one request")
    assert "max_model_len" in line


def test_a_worker_that_is_killed_while_it_loads(tmp_path: Path) -> None:
    """As the kernel does it when memory runs out: it takes the largest process."""
    with started_server("llava-tiny-1.5", tmp_path / "terminal.txt") as server:
        server.wait_for_engine_process("VLLM::Worker").kill()
        line = said_at_its_end(server)
    assert line.startswith("llava-api: the engine could not load the checkpoint: a process of the engine ended without")
    assert "memory" in line
