"""The saga `demo-provision`: an instance gets an address, a volume and a server, is configured, and boots. `saga.yaml` says the same.

Its params are read by `action_server`: `{"delay_s": 0.3, "fail_at": "instance_boot"}`.
"""

from typing import Any

from sec_client import Saga, action, constant, subsaga


def demo_provision(server_alloc_params: Any = None) -> Saga:
    """The saga. The nodes of the subsaga see `server_alloc_params` as their params, and nothing of the saga around it."""
    server_alloc = Saga("server-alloc")
    server_alloc.append(action("server_id", "choose_server"))
    server_alloc.append(action("server_reserve", "reserve_server", reads=["server_id"]))

    saga = Saga("demo-provision")
    saga.append(action("instance_id", "create_instance"))
    saga.append(constant("server_alloc_params", server_alloc_params or {"rack": "r1"}))
    saga.append_parallel(
        action("instance_ip", "allocate_ip", reads=["instance_id"]),
        action("volume_id", "create_volume", reads=["instance_id"]),
        subsaga("server_alloc", server_alloc, params_from="server_alloc_params"),
    )
    saga.append(action("instance_configure", "configure_instance", reads=["instance_id", "instance_ip", "server_alloc"]))
    saga.append(action("volume_attach", "attach_volume", reads=["instance_id", "volume_id"]))
    saga.append(action("instance_boot", "boot_instance", reads=["instance_id", "server_alloc"]))
    saga.append(action("print", "print_summary", reads=["instance_id", "instance_ip", "volume_id", "server_alloc"]))
    return saga
