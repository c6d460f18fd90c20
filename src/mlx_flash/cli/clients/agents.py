"""Coding agents that run in a terminal."""

from collections.abc import Mapping
from pathlib import Path

from .client import Client, Entries, Settings, Setup, config_folder, folder_of, home_folder, quoted
from .server import KEY_VARIABLE, PROVIDER, TITLE, Server

_HOUR_MS = 3_600_000  # a long prompt on a slow disk takes minutes before its first token
_IDLE_MS = 600_000
_CLAUDE_NEEDS = 20_000  # tokens: 50 to 75 KB, as recorded


def _claude(server: Server, environment: Mapping[str, str]) -> Setup:
    variables = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.key,
        "ANTHROPIC_MODEL": server.model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": server.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": server.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": server.model,
        "ANTHROPIC_SMALL_FAST_MODEL": server.model,  # what older versions call haiku
        "CLAUDE_CODE_SUBAGENT_MODEL": server.model,
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(server.context),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(server.output),
        # a line at the top of the prompt that changes from turn to turn: nothing after it could
        # be taken from the server's prompt cache
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(_HOUR_MS),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(_IDLE_MS),
    }
    folder = folder_of(environment, "CLAUDE_CONFIG_DIR", ".claude")
    steps: tuple[str, ...] = ()
    if environment.get("ANTHROPIC_API_KEY"):
        steps = ("ANTHROPIC_API_KEY is set in your shell: unset it, or Claude Code may send it.",)
    if server.context < _CLAUDE_NEEDS:
        steps += (
            f"Claude Code's first question takes up to {_CLAUDE_NEEDS:,} tokens, and this server "
            f"has room for {server.context:,}: take a model that has more, and --max-context.",
        )
    return Setup(
        instead=variables,
        files=(Settings(folder / "settings.json", "json", {"env": variables}),),
        steps=steps,
        start="claude",
    )


def _codex(server: Server, environment: Mapping[str, str]) -> Setup:
    provider: dict[str, object] = {
        "name": TITLE,
        "base_url": server.openai_url,
        "wire_api": "responses",
        "request_max_retries": 1,
        "stream_max_retries": 1,
        "stream_idle_timeout_ms": _HOUR_MS,
    }
    if server.api_key:
        provider["env_key"] = KEY_VARIABLE
    content = {
        "model": server.model,
        "model_provider": PROVIDER,
        "model_context_window": server.context,
        "model_providers": {PROVIDER: provider},
    }
    path = folder_of(environment, "CODEX_HOME", ".codex") / "config.toml"
    variables = {KEY_VARIABLE: server.api_key} if server.api_key else {}
    return Setup(variables=variables, files=(Settings(path, "toml", content),), start="codex")


def _opencode(server: Server, environment: Mapping[str, str]) -> Setup:
    options = {
        "baseURL": server.openai_url,
        "apiKey": server.key,
        "timeout": _HOUR_MS,
        "headerTimeout": _HOUR_MS,
        "chunkTimeout": _IDLE_MS,
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": TITLE,
        "options": options,
        "models": {
            server.model: {
                "name": server.model,
                "limit": {"context": server.context, "output": server.output},
            }
        },
    }
    content = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {PROVIDER: provider},
        "model": f"{PROVIDER}/{server.model}",
    }
    named = environment.get("OPENCODE_CONFIG")
    path = Path(named) if named else config_folder(environment) / "opencode" / "opencode.json"
    return Setup(files=(Settings(path, "json", content),), start="opencode")


def _qwen(server: Server, environment: Mapping[str, str]) -> Setup:
    model = {
        "id": server.model,
        "name": f"{server.model} ({TITLE})",
        "baseUrl": server.openai_url,
        "envKey": KEY_VARIABLE,
        "generationConfig": {"contextWindowSize": server.context, "timeout": _HOUR_MS},
    }
    content = {
        "modelProviders": {"openai": Entries("baseUrl", (model,))},
        "env": {KEY_VARIABLE: server.key},
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": server.model},
    }
    path = folder_of(environment, "QWEN_HOME", ".qwen") / "settings.json"
    return Setup(files=(Settings(path, "json", content),), start="qwen")


def _copilot(server: Server, environment: Mapping[str, str]) -> Setup:
    variables = {
        "COPILOT_PROVIDER_TYPE": "openai",
        "COPILOT_PROVIDER_BASE_URL": server.openai_url,
        "COPILOT_PROVIDER_WIRE_API": "responses",
        "COPILOT_PROVIDER_API_KEY": server.key,
        "COPILOT_MODEL": server.model,
        "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(server.context - server.output),
        "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(server.output),
    }
    return Setup(variables=variables, start="copilot")


def _aider(server: Server, environment: Mapping[str, str]) -> Setup:
    name = f"openai/{server.model}"
    lines = [
        f"model: {quoted(name)}",
        f"openai-api-base: {quoted(server.openai_url)}",
        f"openai-api-key: {quoted(server.key)}",
        "timeout: 3600",
    ]
    limits = {
        "max_input_tokens": server.context,
        "max_output_tokens": server.output,
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    home = home_folder()
    return Setup(
        files=(
            Settings(home / ".aider.conf.yml", "yaml", "\n".join(lines) + "\n"),
            Settings(home / ".aider.model.metadata.json", "json", {name: limits}),
        ),
        start="aider",
    )


def _goose(server: Server, environment: Mapping[str, str]) -> Setup:
    variables = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": server.model,
        "GOOSE_CONTEXT_LIMIT": str(server.context),
        "OPENAI_HOST": server.url,
        "OPENAI_API_KEY": server.key,
        "OPENAI_TIMEOUT": "3600",
    }
    return Setup(variables=variables, start="goose session")


def _pi(server: Server, environment: Mapping[str, str]) -> Setup:
    provider = {
        "baseUrl": server.openai_url,
        "api": "openai-completions",
        "apiKey": server.key,
        "models": [
            {
                "id": server.model,
                "contextWindow": server.context,
                "maxTokens": server.output,
            }
        ],
    }
    folder = folder_of(environment, "PI_CODING_AGENT_DIR", ".pi/agent")
    chosen = {"defaultProvider": PROVIDER, "defaultModel": server.model}
    return Setup(
        files=(
            Settings(folder / "models.json", "json", {"providers": {PROVIDER: provider}}),
            Settings(folder / "settings.json", "json", chosen),
        ),
        start="pi",
    )


def _crush(server: Server, environment: Mapping[str, str]) -> Setup:
    model = {
        "id": server.model,
        "name": server.model,
        "context_window": server.context,
        "default_max_tokens": server.output,
    }
    provider = {
        "name": TITLE,
        "type": "openai-compat",
        "base_url": server.openai_url,
        "api_key": server.key,
        "models": [model],
    }
    chosen = {"model": server.model, "provider": PROVIDER}
    content = {
        "providers": {PROVIDER: provider},
        "models": {"large": chosen, "small": chosen},
    }
    path = config_folder(environment) / "crush" / "crush.json"
    return Setup(files=(Settings(path, "json", content),), start="crush")


AGENTS = (
    Client("claude", "Claude Code", "Anthropic", "settings.json, all models and limits", _claude),
    Client("codex", "Codex CLI", "OpenAI Responses", "config.toml, a provider", _codex),
    Client("opencode", "opencode", "OpenAI chat", "opencode.json, a provider", _opencode),
    Client("qwen-code", "Qwen Code", "OpenAI chat", "settings.json, a provider", _qwen),
    Client("copilot-cli", "GitHub Copilot CLI", "OpenAI Responses", "variables", _copilot),
    Client("aider", "aider", "OpenAI chat", ".aider.conf.yml and limits", _aider),
    Client("goose", "goose", "OpenAI chat", "variables", _goose),
    Client("pi", "pi", "OpenAI chat", "models.json and settings.json", _pi),
    Client("crush", "Crush", "OpenAI chat", "crush.json, a provider", _crush),
)
