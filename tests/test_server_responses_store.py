"""Responses that the server keeps: continued, read again, deleted, dropped."""

import asyncio
from typing import Any

from responding import answered, refused
from serving import FakeBackend, client_of

from mlx_flash.server.gateway.responses.store import Store, Stored
from mlx_flash.server.messages import ChatPrompt


def test_a_response_is_continued_by_its_id() -> None:
    async def talk(backend: FakeBackend) -> Any:
        async with client_of(backend) as client:
            body: dict[str, Any] = {"input": "One", "instructions": "Count."}
            first = (await client.post("/v1/responses", json=body)).json()
            body = {"input": "Three", "previous_response_id": first["id"]}
            second = (await client.post("/v1/responses", json=body)).json()
            page = await client.get(f"/v1/responses/{second['id']}/input_items?order=asc&limit=2")
            reference = [{"type": "item_reference", "id": first["output"][0]["id"]}]
            await client.post("/v1/responses", json={"input": reference})
            return first, page.json()

    backend = FakeBackend()
    first, page = asyncio.run(talk(backend))
    prompts = [asked.prompt for asked in backend.asked]
    assert isinstance(prompts[1], ChatPrompt)
    assert isinstance(prompts[2], ChatPrompt)
    assert prompts[1].messages == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Three"},
    ]
    assert prompts[2].messages == [{"role": "assistant", "content": "Hello"}]
    assert page["has_more"] is True
    assert page["data"][0]["content"] == [{"type": "input_text", "text": "One"}]
    assert page["data"][1] == first["output"][0]


def test_a_stored_response_is_found_until_it_is_deleted() -> None:
    async def visit() -> list[Any]:
        async with client_of(FakeBackend()) as client:
            created = (await client.post("/v1/responses", json={"input": "Hi"})).json()
            path = f"/v1/responses/{created['id']}"
            found = await client.get(path)
            assert found.json() == created
            cancelled = await client.post(f"{path}/cancel")
            deleted = await client.delete(path)
            return [cancelled, deleted, *[await client.get(path) for _ in "x"]]

    cancelled, deleted, gone = asyncio.run(visit())
    assert cancelled.status_code == 400
    assert deleted.json()["deleted"] is True
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "not_found"


def test_a_response_that_is_not_to_be_stored_is_not() -> None:
    backend = FakeBackend()
    body = answered(backend, store=False)
    assert body["store"] is False
    assert refused(FakeBackend(), previous_response_id=body["id"])["code"] == "not_found"


def stored(name: str, text: str = "") -> Stored:
    """Return a response to keep."""
    return Stored({"id": name, "output": []}, [{"id": f"msg_{name}", "text": text}])


def test_the_oldest_responses_make_room() -> None:
    store = Store(max_responses=2, max_bytes=10_000)
    for name in "abc":
        store.save(stored(name))
    assert store.finder()("msg_a") is None
    assert store.get("b").response["id"] == "b"
    store.save(stored("d", "x" * 9_950))
    assert store.finder()("msg_c") is None
    assert store.finder()("msg_d") is not None
    store.save(stored("e", "x" * 20_000))
    assert store.finder()("msg_e") is None
    store.save(stored("f", "x" * 9_000))
    assert store.finder()("msg_f") is not None
