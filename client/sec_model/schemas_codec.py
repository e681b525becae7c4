"""Schemas of actions as messages of the contract."""

from sec_protos.v1 import action_server_pb2

from sec_model.schemas import ActionSchemas, Schema, action_schemas


def schemas_to_proto(schemas: ActionSchemas) -> action_server_pb2.ActionSchemas:
    def text(schema: Schema | None) -> str:
        return "" if schema is None else schema.text

    return action_server_pb2.ActionSchemas(
        params=text(schemas.params),
        inputs={name: schema.text for name, schema in schemas.inputs.items()},
        optional_inputs=sorted(schemas.optional_inputs),
        output=text(schemas.output),
    )


def schemas_from_proto(message: action_server_pb2.ActionSchemas) -> ActionSchemas:
    """Reads and checks schemas. Raises `SchemaError`."""
    return action_schemas(message.params, message.inputs, message.optional_inputs, message.output)
