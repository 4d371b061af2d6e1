"""A model that says its prompt back, word by word, behind a real Triton: the Python backend runs it as `model.py`.

It takes whichever tensors its config.pbtxt declares, and answers in the way that the config's parameters name. A few words
in a prompt make it fail in the ways that real models do.
"""

import json
import os
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

DELAY = 0.005  # seconds between two words
PATIENCE = 20.0  # seconds after which even an endless answer ends


class TritonPythonModel:
    """What the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what is declared."""
        config = json.loads(args["model_config"])
        self.inputs = {declared["name"]: declared for declared in config["input"]}
        self.outputs = {declared["name"]: declared for declared in config["output"]}
        said = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.cumulative = said.get("cumulative") == "yes"
        self.batched = config["max_batch_size"] > 0
        self.decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer each; where the model is decoupled, from a thread of its own, and as often as it likes."""
        if not self.decoupled:
            return [self.reply("".join(self.pieces(asked)), "stop", 1) for asked in map(self.read, requests)]
        for request in requests:
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(request, sender), daemon=True).start()
        return None

    def read(self, request: Any) -> dict[str, Any]:
        """All that was given, as Python's own values; a tensor of several as a list."""
        asked: dict[str, Any] = {}
        for name, declared in self.inputs.items():
            tensor = backend.get_input_tensor_by_name(request, name)
            if tensor is not None:
                values = [v.decode() if isinstance(v, bytes) else v.item() for v in tensor.as_numpy().reshape(-1)]
                asked[name] = values if declared["dims"] == [-1] else values[0]
        asked.update(json.loads(asked.pop("sampling_parameters", "{}")))
        print("ASKED " + json.dumps(asked, sort_keys=True), flush=True)
        return asked

    def pieces(self, asked: dict[str, Any]) -> list[str]:
        """What it says, and it is never longer than `max_tokens` words."""
        prompt = asked["text_input"]
        words = ["word"] * 1_000_000 if "ENDLESS" in prompt else prompt.split(" ")
        return [word if number == 0 else " " + word for number, word in enumerate(words[: asked.get("max_tokens", 16)])]

    def answer(self, request: Any, sender: Any) -> None:
        """Say it all, unless something happens."""
        try:
            self.say(request, sender, self.read(request))
        except Exception as failure:  # noqa: BLE001  # as models do: whatever it is, Triton is told
            sender.send(
                backend.InferenceResponse(error=backend.TritonError(str(failure))),
                flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )

    def say(self, request: Any, sender: Any, asked: dict[str, Any]) -> None:
        """Word by word, for as long as anybody wants it."""
        prompt = asked["text_input"]
        if "CRASH" in prompt:
            os._exit(1)
        if "FAIL FIRST" in prompt:
            raise RuntimeError("failed before the first word")
        if "TOO LONG" in prompt:
            raise ValueError("Prompt length (9000) exceeds maximum input length (4096).")
        pieces = self.pieces(asked)
        if not asked.get("stream", True):
            pieces = ["".join(pieces)]
        said = ""
        began = time.monotonic()
        for number, piece in enumerate(pieces):
            if request.is_cancelled() or sender.is_cancelled() or time.monotonic() > began + PATIENCE:
                print(f"CANCELLED after {number}", flush=True)
                break
            if "FAIL LATER" in prompt and number == 2:
                raise RuntimeError("failed after two words")
            time.sleep(DELAY)
            said += piece
            last = number == len(pieces) - 1
            full = len(prompt.split(" ")) > number + 1
            finish = ("length" if full else "stop") if last else ""
            sender.send(self.reply(said if self.cumulative else piece, finish, len(prompt.split(" "))))
        sender.send(flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def reply(self, text: str, finish: str, prompt_tokens: int) -> Any:
        """One response, in the declared tensors."""
        values = {
            "text_output": (text.encode(), np.object_),
            "finish_reason": (
                (finish or "None").encode() if "num_output_tokens" in self.outputs else finish.encode(),
                np.object_,
            ),
            "num_input_tokens": (prompt_tokens, np.uint32),
            "num_output_tokens": (1, np.uint32),
        }
        shape = (1, 1) if self.batched else (1,)
        tensors = [
            backend.Tensor(name, np.array([value], dtype=type_).reshape(shape))
            for name, (value, type_) in values.items()
            if name in self.outputs
        ]
        return backend.InferenceResponse(output_tensors=tensors)
