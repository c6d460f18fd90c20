"""The route of chats."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ...messages import Generate
from ..backend import RequestError, backend_of
from ..streams import begun, event_stream, unless_gone
from .chat_body import ChatBody
from .chat_writer import ChatWriter
from .conversation import grammar_of, prompt_of
from .counts import Heading
from .replies import ChatChunk, ChatReply, streamed_or
from .side_by_side import collect_all, submit_all
from .streaming import stream
from .tools import Tools, tools_of

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=None, responses=streamed_or(ChatReply, ChatChunk)
)
@router.post("/chat/completions", include_in_schema=False, response_model=None)
async def chat_completions(request: Request, body: ChatBody) -> Response:
    """Go on with a conversation."""
    backend = backend_of(request)
    tools = tools_of(body)
    answers = await submit_all(backend, _wanted(body, tools))
    writer = ChatWriter(body, tools, Heading.of("chatcmpl", body.model, backend))
    if body.stream:
        return event_stream(await begun(request, stream(answers, writer)))
    collected = await unless_gone(request, collect_all(answers))
    return Response(writer.reply(collected).json_text(), media_type="application/json")


def _wanted(body: ChatBody, tools: Tools) -> list[Generate]:
    """Return what the worker is asked: the same prompt for each answer."""
    if body.top_logprobs and not body.logprobs:
        raise RequestError("invalid", "top_logprobs: it needs logprobs to be true.", "top_logprobs")
    prompt = prompt_of(body, tools.offered)
    grammar = grammar_of(body)
    parallel = not tools.legacy and body.parallel_tool_calls is not False
    return [
        Generate(
            request=0,
            prompt=prompt,
            max_tokens=body.token_limit,
            stop=body.stop_texts,
            sampling=body.sampling(nth),
            grammar=grammar,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            tool_choice=tools.choice,
            parallel_tool_calls=parallel,
        )
        for nth in range(body.num_answers)
    ]
