"""``dsv2 serve --ray`` as a process, from start to drain."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.service.workers import environment

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dsv2[ray]'")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_runs_its_engines_on_ray_and_takes_them_with_it(
    tiny_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"data: {tmp_path / 'data'}\nmodels: [{{model: {tiny_folder}, name: tiny}}]\n"
    )
    code = "from dsv2.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--config", str(config), "--ray", "--port", "0",
         "--operations-port", "0", "--threads", "1", "--cache-tokens", "6400", "--device", "cpu",
         "--dtype", "float32", "--drain-seconds", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("metrics at"):
                break
        assert "replicas of Ray" in "".join(lines), lines
        address = lines[-1].split()[-1]
        deadline = time.monotonic() + 20
        while 'dsv2_engine_up{model="tiny"} 1.0' not in (text := httpx.get(address).text):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        found = re.search(r"serving .* at (http://\S+)", "".join(lines))
        assert found, lines
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 5,
        }
        answers = [
            httpx.post(
                f"{found[1]}/v1/chat/completions", json=body | {"temperature": 0}, timeout=60
            )
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        [first, second] = [answer.json() for answer in answers]
        assert first["usage"]["completion_tokens"] == 5
        assert first["choices"] == second["choices"]
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0, (rest, errors)
