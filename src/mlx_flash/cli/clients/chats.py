"""Chat programs, the `llm` command, and programs built on an SDK."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from .client import Client, Settings, Setup, application_folder, quoted
from .server import PROVIDER, Server

_HERE = ("127.0.0.1", "localhost", "::1")


def _from_container(server: Server) -> str:
    """Return the server's address for a program in a Docker container on the same machine."""
    parts = urlsplit(server.url)
    if parts.hostname not in _HERE:
        return server.url
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit(parts._replace(netloc=f"host.docker.internal{port}"))


_CONTAINER_STEP = (
    "In a container 127.0.0.1 is the container itself. On Linux the server must then listen on an "
    "address that Docker reaches: mlx-flash serve --host 0.0.0.0 with an API key."
)


def _openwebui(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        variables={
            "OPENAI_API_BASE_URL": server.openai_url,
            "OPENAI_API_KEY": server.key,
            "ENABLE_OLLAMA_API": "false",
        },
        steps=(
            "Where Open WebUI has run before, enter it instead under Admin Panel, Settings, "
            f"Connections, OpenAI API, +: URL {server.openai_url} and the key.",
            "In Docker: docker run -d -p 3000:8080 --add-host=host.docker.internal:host-gateway "
            f"-e OPENAI_API_BASE_URL={_from_container(server)}/v1 "
            f"-e OPENAI_API_KEY={shlex.quote(server.key)} "
            "-v open-webui:/app/backend/data ghcr.io/open-webui/open-webui:main",
            _CONTAINER_STEP,
        ),
        start="open-webui serve --port 3000",
    )


def _llm(server: Server, environment: Mapping[str, str]) -> Setup:
    lines = [
        f"- model_id: {PROVIDER}",
        f"  model_name: {quoted(server.model)}",
        f"  api_base: {quoted(server.openai_url)}",
        "  supports_tools: true",
        "  supports_schema: true",
    ]
    named = environment.get("LLM_USER_PATH")
    folder = Path(named) if named else application_folder(environment, "io.datasette.llm")
    files: tuple[Settings, ...] = ()
    if server.api_key:
        lines.append(f"  api_key_name: {PROVIDER}")
        files = (Settings(folder / "keys.json", "json", {PROVIDER: server.api_key}),)
    text = "\n".join(lines) + "\n"
    models = Settings(folder / "extra-openai-models.yaml", "yaml", text)
    return Setup(files=(models, *files), start=f"llm -m {PROVIDER} 'Hello'")


def _jan(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "In Jan: Settings, Model Providers, Add Provider, name MLX-Flash.",
            f"Base URL: {server.openai_url}",
            f"API Key: {server.key}",
            f"Then refresh the models, or add {server.model} by hand, and choose it in a chat.",
        )
    )


def _librechat(server: Server, environment: Mapping[str, str]) -> Setup:
    lines = [
        "version: 1.2.1",
        "endpoints:",
        "  custom:",
        "    - name: MLX-Flash",
        f"      apiKey: {quoted(server.key)}",
        f"      baseURL: {quoted(_from_container(server) + '/v1')}",
        "      models:",
        f"        default: [{quoted(server.model)}]",
        "        fetch: true",
        "      titleConvo: true",
        "      titleModel: current_model",
        "      modelDisplayLabel: MLX-Flash",
    ]
    return Setup(
        steps=(
            "Put this into librechat.yaml, in LibreChat's folder, and restart LibreChat:\n"
            + "\n".join(lines),
            _CONTAINER_STEP,
        )
    )


def _anythingllm(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "In AnythingLLM: Settings, AI Providers, LLM, Generic OpenAI.",
            f"Base URL: {server.openai_url}, in Docker {_from_container(server)}/v1",
            f"API Key: {server.key}",
            f"Chat Model Name: {server.model}",
            f"Model context window: {server.context}; Max Tokens: {server.output}",
        )
    )


def _openai(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        variables={"OPENAI_BASE_URL": server.openai_url, "OPENAI_API_KEY": server.key},
        steps=(f"Use model {server.model}, or any name: the server runs the one it was given.",),
    )


def _anthropic(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        variables={"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": server.key},
        steps=(f"Use model {server.model}, or any name: the server runs the one it was given.",),
    )


def _ollama(server: Server, environment: Mapping[str, str]) -> Setup:
    key = {"OLLAMA_API_KEY": server.api_key} if server.api_key else {}
    return Setup(
        variables={"OLLAMA_HOST": server.url, **key},
        steps=(f"Use model {server.model}, or any name: the server runs the one it was given.",),
    )


CHATS = (
    Client("openwebui", "Open WebUI", "OpenAI chat", "variables, for Docker too", _openwebui),
    Client("llm", "llm", "OpenAI chat", "extra-openai-models.yaml", _llm),
    Client("jan", "Jan", "OpenAI chat", "steps", _jan),
    Client("librechat", "LibreChat", "OpenAI chat", "text for librechat.yaml", _librechat),
    Client("anythingllm", "AnythingLLM", "OpenAI chat", "steps", _anythingllm),
    Client("openai", "programs on an OpenAI SDK", "OpenAI", "variables", _openai),
    Client("anthropic", "programs on an Anthropic SDK", "Anthropic", "variables", _anthropic),
    Client("ollama", "programs on an Ollama library", "Ollama", "variables", _ollama),
)
