"""vLLM, started for a run: `vllm serve` with the model for the baseline, then with an edited copy
for ablation.

The copy is written tensor by tensor (``weights.stream``) beside the run and deleted afterwards.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from refusal.config.engines import EngineOptions
from refusal.config.options import ModelOptions
from refusal.core.errors import ConfigError, EngineError
from refusal.core.progress import task
from refusal.engines.openai import ABLATION, address_of, ask_checked
from refusal.engines.protocol import Job
from refusal.interventions.conditions import BASELINE
from refusal.model.chat_model import ChatModel
from refusal.model.load import local_folder
from refusal.model.thinking_limits import limits
from refusal.weights.checkpoint_stream import stream_model

SERVED = "refusal"  # what the model is called at its own server
LONGEST_START = 3600.0  # seconds: hundreds of gigabytes are read
LONGEST_STOP = 30.0
SHORTEST_CONTEXT = 4096


class Vllm:
    """A vLLM server of this run's own; it is started at the first completion and stopped by
    ``close``.
    """

    elsewhere = True

    def __init__(self, options: EngineOptions, scratch: Path) -> None:
        """Nothing is started yet.

        Raises:
            ConfigError: there is no `vllm` command.
        """
        command = shutil.which("vllm")
        if command is None:
            raise ConfigError(
                "--engine vllm needs the vllm command. Install it with pip install vllm, or use "
                "own."
            )
        self._command = command
        self._options = options
        self._scratch = scratch
        self._running: _Running | None = None

    @staticmethod
    def serves(condition: str) -> bool:
        """The unedited model and an edited one."""
        return condition in (BASELINE, ABLATION)

    def generate(self, job: Job) -> list[str]:
        """Write greedy completions of a job's instructions, in their order, by a server that is
        kept while the condition and the length of what it is asked for stay.

        Raises:
            EngineError: the server does not start, or does not serve this model.
        """
        new, _ = limits(job.model, job.max_new_tokens)
        context = max(map(len, job.model.tokenize(job.instructions)), default=0) + new
        if (
            self._running is None
            or self._running.condition != job.condition
            or self._running.context < context
        ):
            self.close()
            self._running = self._start(job, max(SHORTEST_CONTEXT, context))
        return ask_checked(address_of(self._options, self._running.url, SERVED, job), job)

    def close(self) -> None:
        """Stop the server and delete what was written for it."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _start(self, job: Job, context: int) -> "_Running":
        model = job.model
        self._scratch.mkdir(parents=True, exist_ok=True)
        for left in self._scratch.glob(".vllm-*"):  # by a run that was killed
            shutil.rmtree(left)
        folder = tempfile.TemporaryDirectory(dir=self._scratch, prefix=".vllm-")
        try:
            source = local_folder(model.name, model.revision)
            if job.condition == ABLATION:
                edited = Path(folder.name) / "model"
                stream_model(
                    source,
                    job.direction,
                    edited,
                    name=model.name,
                    options=ModelOptions(revision=model.revision),
                )
                source = edited
            return _Running(folder, job.condition, context, self._arguments(source, model, context))
        except BaseException:
            folder.cleanup()
            raise

    def _arguments(self, source: Path, model: ChatModel, context: int) -> list[str]:
        """The command without its port; sampling defaults are not taken from the model's generation
        config.
        """
        dtype = str(model.hf.dtype).removeprefix("torch.")
        found = [
            self._command,
            "serve",
            str(source),
            "--served-model-name",
            SERVED,
            "--dtype",
            dtype,
        ]
        found += [
            "--host",
            "127.0.0.1",
            "--max-model-len",
            str(context),
            "--generation-config",
            "vllm",
        ]
        if model.device.type == "cuda":  # the model here is on the same device
            free, total = torch.cuda.mem_get_info(model.device)
            found += ["--gpu-memory-utilization", f"{0.95 * free / total:.2f}"]
        return found + [f"--{argument.lstrip('-')}" for argument in self._options.engine_arguments]


class _Running:
    """A server's process, its log and its folder."""

    def __init__(
        self,
        folder: "tempfile.TemporaryDirectory[str]",
        condition: str,
        context: int,
        arguments: list[str],
    ) -> None:
        self.condition, self.context = condition, context
        self._folder = folder
        self._log = Path(folder.name) / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        with self._log.open("wb") as log:
            self._process: subprocess.Popen[Any] = subprocess.Popen(
                [*arguments, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        """Until the server answers.

        Raises:
            EngineError: it ended, or takes longer than an hour.
        """
        with task(f"start vllm: {self.condition}", total=0, unit=""):
            end = time.monotonic() + LONGEST_START
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    said = self._log.read_text(
                        encoding="utf-8", errors="replace"
                    ).strip().splitlines() or ["nothing"]
                    raise EngineError(
                        f"vllm ended with exit code {self._process.returncode} before it "
                        f"answered: {said[-1][:200]}. Try the same model with `vllm serve`; "
                        "--engine-arguments hands it further arguments."
                    )
                try:
                    urllib.request.urlopen(f"{self.url}/models", timeout=5).close()
                    return
                except (urllib.error.URLError, OSError):
                    time.sleep(0.2)
        raise EngineError(
            "vllm has not answered within an hour. Start it yourself, and use --engine openai."
        )

    def stop(self) -> None:
        """End the server with all its workers."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(LONGEST_STOP)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._folder.cleanup()
