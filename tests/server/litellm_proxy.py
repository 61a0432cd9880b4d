"""A real LiteLLM proxy, in a process and a virtual environment of its own, with the example's guardrail."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from tests.server.venvs import python_with

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "litellm"
KEY = "sk-proxy"


def litellm_python() -> Path:
    """The interpreter that has LiteLLM, at the versions of the example's requirements.txt."""
    return python_with("litellm", EXAMPLE / "requirements.txt")


class Proxy:
    """Starts a proxy with the example's configuration, and `more` guardrails and models that a request may ask for."""

    def __init__(
        self, folder: Path, env: dict[str, str], more: list[dict[str, Any]], models: list[dict[str, Any]]
    ) -> None:
        config = yaml.safe_load((EXAMPLE / "config.yaml").read_text("utf-8"))
        config["guardrails"] += more
        config["model_list"] += models
        (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        for module in EXAMPLE.glob("*.py"):
            shutil.copy(module, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", folder / "log.txt"
        run = "from litellm import run_server; run_server()"
        command = [litellm_python(), "-c", run, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_MASTER_KEY": KEY}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **quiet, **env}
            )
        self._wait(240)  # its imports take a minute on a busy machine

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health/readiness", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError("LiteLLM did not start:\n" + self.log[-3000:])

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(15)
