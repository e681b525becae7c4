"""Sagas that do not fit the actions that servers describe are refused at submit, and nothing of them is written."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from inprocess_support import Cluster, cluster
from sec_client import InvalidDefinition, Saga, SagaExists, action, constant, subsaga
from sec_client.kit import ActionServer, Call, MemoryStore
from sec_model import Schema
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc, coordinator_pb2_grpc
from sec_protos.v1 import coordinator_pb2 as pb
from waiting_support import until

from sec.api.requests import MAX_DESCRIPTION_BYTES
from sec.dispatch.descriptions import Descriptions
from sec.store.kv import Get, prefix_end


@dataclass
class Ip:
    address: str


@dataclass
class Guest:
    guest: str


def network(*, output: Any = Ip) -> ActionServer:
    """Offers an action that answers something of this type."""
    server = ActionServer("network", store=MemoryStore())

    def allocate(call: Call) -> output:
        return Ip("10.0.0.1")

    server.action("allocate", undo=None)(allocate)
    return server


def compute(*, ip: Any = Ip, params: Any = Any) -> ActionServer:
    """Offers an action that takes something of these types."""
    server = ActionServer("compute", store=MemoryStore())

    def boot(call: Call, ip: ip, params: params) -> str:
        return f"{params} at {ip}"

    server.action("boot", undo=None)(boot)
    return server


def saga(reads: str = "ip") -> Saga:
    made = Saga("boots").append(constant("port", 7)).append(action("ip", "allocate"))
    return made.append(action("boot", "boot", reads={"ip": reads}))


@pytest.fixture
async def one() -> AsyncIterator[Cluster]:
    async with cluster("n1") as made:
        yield made


def written(made: Cluster) -> int:
    prefix = made.members["n1"].node.keys.saga("").removesuffix(b"saga/")  # type: ignore[arg-type]
    found = made.etcd.get(Get(prefix, prefix_end(prefix)))
    return sum(b"/def" in item.key or b"saga" in item.key for item in found.items)


async def refused(made: Cluster, what: Saga, **options: Any) -> tuple[str, ...]:
    before = written(made)
    async with made.client() as client:
        with pytest.raises(InvalidDefinition) as raised:
            await client.submit(what, **options)
    assert written(made) == before
    assert "does not fit the actions that it calls" in raised.value.message
    assert raised.value.hint.startswith("Nothing was stored.")
    return raised.value.problems


async def test_a_saga_that_fits_runs(one: Cluster) -> None:
    await one.serve(network())
    await one.serve(compute(params=Guest))
    before = written(one)
    async with one.client() as client:
        result = await client.run(saga(), params={"guest": "Ada"})
    assert written(one) > before + 1, "the definition, the saga and its log"
    assert result.output == "Guest(guest='Ada') at Ip(address='10.0.0.1')"


async def test_all_that_does_not_fit_is_told(one: Cluster) -> None:
    await one.serve(network(output=int))
    await one.serve(compute(params=Guest))
    problems = await refused(one, saga(), params={"guest": 5}, saga_id="s1")
    assert problems == (
        'Input "ip" of node "boot" is not what action "boot" wants: the output of node "ip" (action "allocate") '
        "is integer, where object is wanted.",
        'The params of the saga are not what action "boot" of node "boot" wants: wrong at $.guest: 5 is not of type \'string\'.',
    )


async def test_constants_and_params_of_subsagas_are_checked(one: Cluster) -> None:
    await one.serve(network())
    await one.serve(compute(params=Guest))
    inner = Saga("inner").append(action("ip", "allocate")).append(action("boot", "boot", reads={"ip": "ip"}))
    outer = saga("port").append(constant("guest", {"gast": "Ada"})).append(subsaga("sub", inner, params_from="guest"))
    problems = await refused(one, outer, params={"guest": "Ada"})
    assert [problem.partition(" is not ")[0].partition(" are not ")[0] for problem in problems] == [
        'Input "ip" of node "boot"',
        'The params of node "sub/boot"',
    ]


async def test_the_same_definition_is_checked_with_the_params_of_each_submit(one: Cluster) -> None:
    await one.serve(network())
    await one.serve(compute(params=Guest))
    async with one.client() as client:
        await client.submit(saga(), params={"guest": "Ada"})
        assert len(await refused(one, saga(), params={"guest": 1})) == 1
        assert len(await refused(one, saga())) == 1
        await client.submit(saga(), params={"guest": "Bea"})


async def test_what_nobody_describes_or_offers_is_not_checked(one: Cluster) -> None:
    await one.serve(compute())
    async with one.client() as client:
        assert (await client.submit(saga())).warnings
        await one.serve(network(output=Any))
        assert not (await client.submit(saga())).warnings


async def test_a_saga_is_checked_against_the_version_that_it_would_get(one: Cluster) -> None:
    """The newest that fits what it asks for, and not others that are offered as well."""

    def asks(asked: str) -> Saga:
        return Saga("s").append(action("a", asked))

    def takes(offer: str, of_type: str) -> ActionServer:
        server = ActionServer(offer.replace("@", "-"), store=MemoryStore())
        server.action(offer, undo=None, params_schema={"type": of_type})(lambda call: None)
        return server

    await one.serve(takes("act@1.0", "string"))
    await one.serve(takes("act@1.1", "integer"))
    await one.serve(takes("act", "string"))
    async with one.client() as client:
        await client.submit(asks("act@1"), params=1)
        await client.submit(asks("act@1.0"), params="one")
        assert len(await refused(one, asks("act@1"), params="one")) == 1
        assert len(await refused(one, asks("act@=1.0"), params=1)) == 1
        await one.serve(takes("act@1.2", "string"))
        await client.submit(asks("act@1"), params="one")
        assert (await client.submit(asks("act@2"), params=1)).warnings == (
            'No action server that can be reached offers the action "act@2" now; its nodes will wait.',
        )


async def test_in_a_rolling_update_only_what_fits_none_is_refused(one: Cluster) -> None:
    await one.serve(network())
    old = await one.serve(compute(ip=int))
    await refused(one, saga())
    await one.serve(compute(ip=Ip))
    async with one.client() as client:
        await client.submit(saga(), saga_id="meanwhile", start=False)
        (boot,) = [a for a in await client.actions() if a.name == "boot"]
        assert len(boot.schemas) == 2
        await old.stop(0.0)
        await until(lambda: len(one.members["n1"].node.directory.schemas["boot"]) == 1)
        await refused(one, saga("port"))
        await client.submit(saga(), start=False)


async def test_a_saga_that_is_there_is_answered_although_its_actions_have_changed(one: Cluster) -> None:
    await one.serve(network())
    old = await one.serve(compute())
    async with one.client() as client:
        assert (await client.submit(saga(), saga_id="s1", start=False)).created
        await old.stop(0.0)
        await one.serve(compute(ip=int))
        await until(lambda: len(one.members["n1"].node.directory.schemas.get("boot", ())) == 1)
        assert len(await refused(one, saga(), saga_id="s2")) == 1
        assert not (await client.submit(saga(), saga_id="s1", start=False)).created
        with pytest.raises(SagaExists):
            await client.submit(saga(), saga_id="s1", params={"other": "content"}, start=False)


async def test_a_registration_with_a_schema_that_is_none_is_refused(one: Cluster) -> None:
    member = one.members["n1"]
    async with grpc.aio.insecure_channel(member.address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)

        async def refusal(**schemas: Any) -> str:
            described = action_server_pb2.ActionDescription(name="act", schemas=action_server_pb2.ActionSchemas(**schemas))
            message = pb.RegisterActionServerRequest(instance_id="i1", address="127.0.0.1:9", actions=[described])
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.RegisterActionServer(message)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert not member.node.registrations.items
            return raised.value.details() or ""

        assert await refusal(output='{"type": "strin"}') == (
            'Action server "i1" describes the action "act" in a way that cannot be used. The schema of the output is not valid. '
            "It is no JSON Schema of draft 2020-12, at $.type: 'strin' is not valid under any of the given schemas."
        )
        assert "leads nowhere" in await refusal(inputs={"ip": '{"$ref": "http://127.0.0.1:9/x"}'})
        assert await refusal(output='"' + "x" * MAX_DESCRIPTION_BYTES + '"') == (
            f'Action server "i1" describes its actions in {MAX_DESCRIPTION_BYTES + 15} bytes; at most {MAX_DESCRIPTION_BYTES} are allowed.'
        )


class ByHand(action_server_pb2_grpc.ActionServerServicer):
    """An action server that describes one action well and one badly."""

    async def Describe(self, request: Any, context: Any) -> action_server_pb2.DescribeResponse:  # noqa: N802 # gRPC's name
        actions = [
            action_server_pb2.ActionDescription(name=name, schemas=action_server_pb2.ActionSchemas(inputs={"ip": schema}))
            for name, schema in (("boot", "{"), ("well", '{"type": "object"}'))
        ]
        return action_server_pb2.DescribeResponse(server_name="by hand", actions=actions)


async def test_a_bad_schema_of_a_configured_server_is_logged_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    action_server_pb2_grpc.add_ActionServerServicer_to_server(ByHand(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with cluster("n1", action_servers=(address,)) as made:
            directory = made.members["n1"].node.directory
            await until(lambda: "boot" in directory.offered)
            assert [*directory.schemas] == ["well"]
            assert f'The action server at {address} describes the action "boot" in a way that cannot be used' in caplog.text
            async with made.client() as client:
                await client.submit(saga("port"), start=False)
    finally:
        await server.stop(None)


async def test_a_description_is_parsed_once_and_anew_when_it_changes() -> None:
    """Parsing takes long, and a server is asked at each new connection."""

    def description(schema: str) -> list[action_server_pb2.ActionDescription]:
        return [action_server_pb2.ActionDescription(name="act", schemas=action_server_pb2.ActionSchemas(output=schema))]

    descriptions = Descriptions("127.0.0.1:9")
    first = (await descriptions.read(description('{"type": "object"}')))["act"].schemas
    again = (await descriptions.read(description('{"type": "object"}')))["act"].schemas
    other = (await descriptions.read(description('{"type": "string"}')))["act"].schemas
    assert again is first
    assert other.output == Schema('{"type": "string"}')
