"""Each setting that can be written has a test that shows its effect, and refuses what it cannot be."""

import ast
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.loader import load
from socks_tunnel.config.models import ConfigFile

TESTS = Path(__file__).parents[2]

EFFECTS = {
    "audit.file": "network/test_audit.py::test_a_narrower_policy",
    "drain_timeout": "system/test_lifecycle.py::test_drain_timeout_ends_what_is_left",
    "forwards.listen": "integration/test_worker_forwards.py::test_tcp_forward",
    "forwards.target": "integration/test_worker_forwards.py::test_tcp_forward",
    "ice.addresses": "integration/test_link.py::test_each_connection_has_its_own_addresses",
    "ice.policy": "network/test_nat.py::test_relay_by_choice_hides_the_addresses",
    "ice.proxy": "network/test_nat.py::test_where_only_a_proxy_leads_out",
    "ice.servers.credential": "network/test_nat.py::test_a_wrong_credential_is_named",
    "ice.servers.urls": "network/test_nat.py::test_a_dead_server_before_a_live_one",
    "ice.servers.username": "network/test_nat.py::test_a_wrong_credential_is_named",
    "ice.tls_ca": "network/test_nat.py::test_where_only_a_proxy_leads_out",
    "ice.udp_ports": "network/test_ice.py::test_ports_of_a_range",
    "identity.private_key_file": "system/test_lifecycle.py::test_stranger_is_refused_and_both_logs_say_so",
    "include": "unit/config/test_include.py::test_peers_and_policies_are_added_in_the_order_of_names",
    "join.group.endpoints.name": "integration/supervisor/test_group.py::test_who_joins_the_owner_is_admitted_and_revoked_everywhere",
    "join.group.endpoints.public_key": "integration/supervisor/test_group.py::test_an_endpoint_that_is_not_in_its_group_does_not_start",
    "join.group.max_age": "integration/supervisor/test_group.py::test_a_copy_that_nobody_confirms_ends",
    "join.group.name": "integration/supervisor/test_group.py::test_another_group_begins_with_nothing",
    "join.group.owner": "integration/supervisor/test_group.py::test_who_joins_the_owner_is_admitted_and_revoked_everywhere",
    "join.jwt.audience": "unit/signaling/test_jwt_tokens.py::test_claims_that_are_refused",
    "join.jwt.issuer": "unit/signaling/test_jwt_tokens.py::test_claims_that_are_refused",
    "join.jwt.jwks": "integration/test_joining_jwt.py::test_from_a_token_to_a_flow",
    "join.jwt.leeway": "unit/signaling/test_jwt_tokens.py::test_times_within_the_leeway",
    "join.jwt.lifetime": "unit/signaling/test_enrolments.py::test_a_used_jwt_is_remembered_after_its_host_is_gone_and_after_a_restart",
    "join.jwt.max_age": "unit/signaling/test_jwt_tokens.py::test_it_is_remembered_until_it_would_be_too_old",
    "join.jwt.one_time": "unit/signaling/test_enrolments.py::test_a_jwt_for_many_hosts",
    "join.jwt.tag_claim": "unit/signaling/test_jwt_tokens.py::test_roles_in_other_places",
    "join.jwt.tags": "unit/signaling/test_jwt_tokens.py::test_the_first_of_the_tags_counts",
    "join.jwt.tls_ca": "integration/test_jwks.py::test_https_and_whose_certificate_it_is",
    "limits.associations_per_client": "integration/test_worker_unix.py::test_associations_are_counted_by_user",
    "limits.flows_per_worker": "unit/workers/test_worker.py::test_it_holds_as_many_flows_as_it_may",
    "limits.memory_per_worker": "unit/workers/relay/test_tcp.py::test_a_short_memory_holds_the_reading_back",
    "log.format": "system/test_operations.py::test_nothing_secret_in_any_log",
    "log.level": "unit/ops/test_logging.py::test_levels",
    "metrics.hosts": "integration/exporter/test_server.py::test_a_name_that_is_not_ours_gets_no_page",
    "metrics.listen": "system/test_operations.py::test_metrics",
    "metrics.show_destinations": "integration/supervisor/test_overview.py::test_rules_and_flows_are_shown_if_it_is_allowed",
    "peers.enrolment_file": "integration/test_joining.py::test_members_survive_a_restart_and_their_policy",
    "peers.name": "system/test_operations.py::test_status",
    "peers.old_public_key": "integration/supervisor/test_group.py::test_a_fleet_joins_a_group_of_which_one_is_restarted",
    "peers.policy": "system/test_lifecycle.py::test_endpoint_serves_several_gateways",
    "peers.proxy": "integration/test_signaling_proxy.py::test_https_goes_by_connect",
    "peers.public_key": "system/test_lifecycle.py::test_stranger_is_refused_and_both_logs_say_so",
    "peers.rendezvous": "integration/test_rendezvous.py::test_both_sides_outbound_only_have_a_link",
    "peers.tls_ca": "integration/test_signaling_tls.py::test_another_authority",
    "peers.url": "integration/test_supervisor_links.py::test_a_gateway_finds_its_endpoint_and_messages_flow",
    "peers.weight": "integration/test_supervisor_links.py::test_a_peer_s_weight_is_shown_and_a_reload_changes_it",
    "policies.allowed_hosts": "system/test_lifecycle.py::test_endpoint_serves_several_gateways",
    "policies.allowed_ports": "system/test_lifecycle.py::test_endpoint_serves_several_gateways",
    "policies.denied_hosts": "unit/protocol/test_policies.py::test_denied_rules_arrive",
    "policies.denied_ports": "unit/protocol/test_policies.py::test_denied_rules_arrive",
    "policies.policy_file": "unit/config/test_loader.py::test_a_policy_file_becomes_rules",
    "policy.allowed_hosts": "integration/test_worker_names.py::test_a_reload_ends_the_flows_that_it_forbids",
    "policy.allowed_ports": "system/test_clients.py::test_curl_is_told_why",
    "policy.denied_hosts": "integration/test_worker_names.py::test_a_reload_ends_the_flows_that_it_forbids",
    "policy.denied_ports": "network/test_audit.py::test_a_narrower_policy",
    "policy.policy_file": "unit/config/test_loader.py::test_a_policy_file_becomes_rules",
    "policy_file": "unit/config/test_loader.py::test_a_policy_file_becomes_rules",
    "rendezvous_clock": "integration/test_rendezvous.py::test_the_service_time_counts_where_it_is_trusted_for_that",
    "resume_timeout": "network/test_alive.py::test_a_session_that_is_given_up_ends_by_reset_and_keeps_nothing",
    "role": "unit/supervisor/test_reload.py::test_another_role_is_no_reload",
    "routes.failures": "unit/supervisor/test_choosing.py::test_dials_count_for_their_route_alone",
    "routes.hosts": "network/test_routes.py::test_names_tell_two_networks_with_the_same_addresses_apart",
    "routes.name": "unit/cli/test_route.py::test_which_peer_and_why",
    "routes.peers": "network/test_routes.py::test_names_tell_two_networks_with_the_same_addresses_apart",
    "routes.policy": "unit/supervisor/test_choosing.py::test_the_nearest_comes_first_and_stays_until_another_is_clearly_nearer",
    "routes.ports": "unit/cli/test_route.py::test_which_peer_and_why",
    "routes.probe": "network/test_routes.py::test_probes_notice_it_before_any_client_does",
    "routes.probe_interval": "unit/supervisor/test_probing.py::test_each_peer_with_a_link_is_probed_in_its_interval",
    "routes.recover_after": "integration/test_supervisor_routes.py::test_a_link_in_doubt_is_passed_over_until_it_was_well_for_a_while",
    "signaling.listen": "integration/supervisor/test_instance.py::test_an_endpoint_without_an_exporter_listens_for_offers",
    "signaling.rendezvous": "integration/test_rendezvous.py::test_both_sides_outbound_only_have_a_link",
    "signaling.tls_ca": "integration/test_rendezvous.py::test_over_tls_with_an_authority_of_its_own",
    "signaling.tls_certificate": "system/test_https.py::test_a_renewed_certificate_is_taken_by_a_reload",
    "signaling.tls_key": "system/test_https.py::test_a_key_that_is_not_copied",
    "socks.allow_remote_clients": "integration/supervisor/test_listeners.py::test_a_socket_of_systemd_is_judged_by_where_it_is_bound",
    "socks.connect_timeout": "system/test_lifecycle.py::test_requests_without_a_link_fail_after_connect_timeout",
    "socks.idle_tcp": "system/test_flows.py::test_idle_tcp_ends_a_silent_flow",
    "socks.idle_udp": "system/test_udp.py::test_idle_association_ends",
    "socks.listen": "integration/supervisor/test_listeners.py::test_a_bound_listener_accepts_and_says_where_it_is",
    "socks.protocols": "unit/workers/frontends/test_socks.py::test_what_is_not_spoken_here",
    "socks.udp_address": "unit/workers/frontends/test_opening_datagrams.py::test_udp_address_and_udp_ports",
    "socks.udp_ports": "unit/workers/frontends/test_opening_datagrams.py::test_udp_address_and_udp_ports",
    "socks.users_file": "integration/test_worker_unix.py::test_a_password_is_asked_for_here_too",
    "targets.connect_timeout": "integration/test_dialer.py::test_time_is_bounded_over_all_attempts",
    "targets.keepalive": "integration/test_targets.py::test_targets_that_vanish_are_noticed",
    "targets.search": "integration/test_worker_names.py::test_names_are_absolute_and_a_search_list_is_the_policys_business",
    "targets.user_timeout": "integration/test_targets.py::test_targets_that_vanish_are_noticed",
    "transport.congestion": "system/test_transports.py::test_bytes_cross_any_pair",
    "transport.fast_path": "system/test_transports.py::test_bytes_cross_any_pair",
    "udp_filtering": "integration/test_worker_udp.py::test_filtering",
    "workers.count": "network/test_upgrade.py::test_a_reload_changes_how_many_workers_there_are",
}
"""For each setting, the test that fails if the setting does nothing."""

LISTS = {"forwards", "peers", "routes", "ice.servers", "join.group.endpoints"}
"""Arrays of tables."""

GATEWAY = ("socks.", "forwards.", "routes.", "peers.url", "peers.proxy", "peers.weight")
"""Beginnings of settings that only a gateway has; all others are written for an endpoint."""


def tables_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for argument in get_args(annotation) for table in tables_in(argument)]


def settings(model: type[BaseModel] = ConfigFile, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        tables = tables_in(field.annotation)
        found += [each for table in tables for each in settings(table, f"{prefix}{name}.")]
        if not tables:
            found.append(prefix + name)
    return sorted(set(found))


@cache
def functions_of(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    functions = (
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {node.name for node in functions}


def test_no_setting_is_missing() -> None:
    assert sorted(EFFECTS) == settings()


@pytest.mark.parametrize("setting", EFFECTS)
def test_its_effect_is_tested(setting: str) -> None:
    path, _, name = EFFECTS[setting].partition("::")
    assert name in functions_of(path)


def with_a_date(setting: str) -> str:
    """A configuration in which this setting is a date, which no setting is."""
    role = "gateway" if setting.startswith(GATEWAY) else "endpoint"
    table, _, name = setting.rpartition(".")
    if table == "policies":
        table = "policies.some"
    head = "" if setting == "role" else f'role = "{role}"\n'
    line = f"{name} = 1979-05-27\n"
    if not table:
        return head + line
    return head + (f"[[{table}]]\n" if table in LISTS else f"[{table}]\n") + line


@pytest.mark.parametrize("setting", settings())
def test_it_refuses_a_date(setting: str, tmp_path: Path) -> None:
    file = tmp_path / "office.toml"
    file.write_text(with_a_date(setting))
    line = len(file.read_text().splitlines())
    with pytest.raises(ConfigError) as caught:
        load(file)
    name = setting.rpartition(".")[2]
    assert [
        problem
        for problem in caught.value.problems
        if problem.line == line and problem.key.split(".")[-1].startswith(name)
    ], str(caught.value)
