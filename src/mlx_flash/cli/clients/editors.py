"""Editors and their assistants."""

from collections.abc import Mapping

from .client import (
    Client,
    Entries,
    Settings,
    Setup,
    application_folder,
    config_folder,
    folder_of,
    quoted,
)
from .server import KEY_VARIABLE, PROVIDER, TITLE, Server


def _zed(server: Server, environment: Mapping[str, str]) -> Setup:
    model = {
        "name": server.model,
        "display_name": f"{server.model} ({TITLE})",
        "max_tokens": server.context,
        "max_output_tokens": server.output,
        "capabilities": {
            "tools": True,
            "images": False,
            "parallel_tool_calls": False,
            "prompt_cache_key": False,
        },
    }
    provider = {"api_url": server.openai_url, "available_models": [model]}
    content = {
        "language_models": {"openai_compatible": {PROVIDER: provider}},
        "agent": {"default_model": {"provider": PROVIDER, "model": server.model}},
    }
    return Setup(
        variables={KEY_VARIABLE: server.key},
        files=(Settings(config_folder(environment) / "zed" / "settings.json", "json", content),),
        steps=(
            "Zed reads the key from its environment (start it from a shell with the line above) or "
            "from its keychain: Settings, AI, LLM Providers, mlx-flash.",
        ),
    )


def _vscode(server: Server, environment: Mapping[str, str]) -> Setup:
    entry = {"name": TITLE, "vendor": "ollama", "url": server.url}
    folder = application_folder(environment, "Code") / "User"
    steps: tuple[str, ...] = (
        "In VS Code open Chat, its model picker, Manage Models, and choose the model of MLX-Flash. "
        "Restart VS Code if it is not listed.",
    )
    if server.api_key:
        steps += ("The Ollama provider sends no key: run the server without one for VS Code.",)
    path = folder / "chatLanguageModels.json"
    return Setup(files=(Settings(path, "json", Entries("name", (entry,))),), steps=steps)


def _continue(server: Server, environment: Mapping[str, str]) -> Setup:
    lines = [
        "name: MLX-Flash",
        "version: 1.0.0",
        "schema: v1",
        "models:",
        f"  - name: {quoted(f'{server.model} ({TITLE})')}",
        "    provider: openai",
        f"    model: {quoted(server.model)}",
        f"    apiBase: {quoted(server.openai_url)}",
        f"    apiKey: {quoted(server.key)}",
        "    roles: [chat, edit, apply, summarize]",
        "    capabilities: [tool_use]",
        "    defaultCompletionOptions:",
        f"      contextLength: {server.context}",
        f"      maxTokens: {server.output}",
    ]
    path = folder_of(environment, "CONTINUE_GLOBAL_DIR", ".continue") / "config.yaml"
    return Setup(files=(Settings(path, "yaml", "\n".join(lines) + "\n"),))


def _cline(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "In Cline (and Roo Code, Kilo Code) open the settings (the gear), API Provider: OpenAI "
            "Compatible.",
            f"Base URL: {server.openai_url}",
            f"API Key: {server.key}",
            f"Model ID: {server.model}",
            f"Model Configuration: context window {server.context}, max output tokens "
            f"{server.output}, no images.",
        )
    )


def _cursor(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "Cursor's own servers call the model, so an address on this machine does not reach it: "
            "you need a tunnel with an https address, and a key, since that address is public.",
            "Start the server with an API key, then a tunnel to it, such as: cloudflared tunnel "
            f"--url {server.url}",
            "In Cursor: Settings, Models, add the custom model "
            f"{server.model}; under API Keys switch OpenAI API Key on and enter "
            f"{server.api_key or 'the key'}; switch Override OpenAI Base URL on and enter the "
            "tunnel's address followed by /v1.",
        )
    )


def _jetbrains(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "In the IDE: Settings, Tools, AI Assistant, Models & API keys, Third-party AI "
            "providers: OpenAI-compatible (or Ollama, with the address without /v1).",
            f"URL: {server.openai_url}",
            f"API key: {server.key}",
            f"Then choose {server.model} for the core features and the chat.",
        )
    )


def _xcode(server: Server, environment: Mapping[str, str]) -> Setup:
    return Setup(
        steps=(
            "In Xcode 26 or later: Settings, Intelligence, Add a Model Provider (Add a Chat "
            "Provider).",
            f"Locally hosted takes the port of {server.url}; Internet hosted takes that address "
            f"itself, with API key {server.key} and API key header x-api-key.",
        )
    )


EDITORS = (
    Client("zed", "Zed", "OpenAI chat", "settings.json, a provider", _zed),
    Client("vscode", "VS Code, Copilot Chat", "Ollama", "chatLanguageModels.json", _vscode),
    Client("continue", "Continue", "OpenAI chat", "config.yaml", _continue),
    Client("cline", "Cline, Roo Code, Kilo Code", "OpenAI chat", "steps", _cline),
    Client("cursor", "Cursor", "OpenAI chat", "steps: it needs a tunnel", _cursor),
    Client("jetbrains", "JetBrains AI Assistant", "OpenAI chat", "steps", _jetbrains),
    Client("xcode", "Xcode", "OpenAI chat", "steps", _xcode),
)
