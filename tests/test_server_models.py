import asyncio

import msgspec
from serving import FakeBackend, client_of


def test_the_model_is_listed_by_its_name_and_one_that_claude_code_shows() -> None:
    async def work() -> None:
        async with client_of(FakeBackend()) as client:
            for path in ("/v1/models", "/v1/models?limit=1000", "/models"):
                body = (await client.get(path)).json()
                assert body["object"] == "list"
                assert [one["id"] for one in body["data"]] == ["tiny-moe", "claude-tiny-moe"]
                assert (body["first_id"], body["last_id"]) == ("tiny-moe", "claude-tiny-moe")
                assert body["has_more"] is False

    asyncio.run(work())


def test_a_model_has_what_each_client_reads_of_it() -> None:
    async def work() -> None:
        async with client_of(FakeBackend()) as client:
            model = (await client.get("/v1/models/tiny-moe")).json()
            assert model == (await client.get("/v1/models")).json()["data"][0]
        assert (model["object"], model["created"], model["owned_by"]) == ("model", 0, "mlx-flash")
        assert (model["root"], model["parent"], model["max_model_len"]) == ("tiny-moe", None, 4096)
        assert model["permission"][0]["object"] == "model_permission"
        assert model["meta"]["n_ctx_train"] == 2048
        assert (model["meta"]["n_params"], model["meta"]["size"]) == (40_000_000, 46_000_000)
        assert model["architecture"]["input_modalities"] == ["text"]
        assert model["status"] == {"value": "loaded"}
        assert (model["type"], model["display_name"]) == ("model", "tiny-moe")
        assert model["created_at"] == "1970-01-01T00:00:00Z"
        assert (model["max_input_tokens"], model["max_tokens"]) == (4096, 4096)

    asyncio.run(work())


def test_a_name_with_slashes_is_found_and_another_is_not() -> None:
    async def work() -> None:
        backend = FakeBackend()
        assert backend.card is not None
        backend.card = msgspec.structs.replace(backend.card, name="org/tiny-moe")
        async with client_of(backend) as client:
            for name in ("org/tiny-moe", "claude-org/tiny-moe"):
                assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
            missing = await client.get("/v1/models/org/other")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"
        assert "org/other" in missing.json()["error"]["message"]

    asyncio.run(work())


def test_models_are_unavailable_until_the_model_is_loaded() -> None:
    async def work() -> None:
        backend = FakeBackend()
        backend.card, backend.state = None, "loading"
        async with client_of(backend) as client:
            for path in ("/v1/models", "/models", "/v1/models/tiny-moe"):
                response = await client.get(path)
                assert response.status_code == 503
                assert response.headers["retry-after"]
                assert response.json()["error"]["type"] == "unavailable_error"

    asyncio.run(work())
