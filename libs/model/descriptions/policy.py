"""Tiers, policies in all their forms, profiles, and the rules inside them."""

from __future__ import annotations

from libs.model import policy as m
from libs.model.defaults import DEFAULT_TIER
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.scalars import PROTOCOL_NUMBERS
from libs.model.validation import checks
from libs.model.validation import policy as rules

SELECTOR = (
    "Operators: ==, !=, in {…}, not in {…}, has(label), contains, starts with, ends with, combined by &&, || and !, "
    "as in role == 'db' && has(zone). Text stands in single or double quotes."
)
_PROTOCOLS = f"a name ({', '.join(PROTOCOL_NUMBERS)}) or a number from 1 to 255"
_TIER = Note(
    "The tier that the policy belongs to. The tier must exist when the policy is created.", default=DEFAULT_TIER
)
_ORDER = Note(
    "Place of the policy within its tier: policies with a lower order are applied first, those without one last. "
    "Policies of the same order are applied in the order of their names."
)


def _rules(direction: str) -> Note:
    return Note(
        f"Rules for {direction} traffic, tried in this order: the first that matches decides, unless its action is "
        "Log. Traffic that no rule matches meets the tier's next policy, and after the last the tier's default action.",
        most=rules.MAX_RULES,
    )


_SHARED = {
    "tier": _TIER,
    "order": _ORDER,
    "ingress": _rules("incoming"),
    "egress": _rules("outgoing"),
    "types": Note(
        "Directions that the policy applies to. By default those that it has rules for, and Ingress when it has no "
        "rules at all. Traffic in a direction that is not named is left alone by this policy.",
        choices=rules.TYPES, most=2, unique=True,
    ),
    "performance_hints": Note(
        "Hints for the calculation of policy; they never change what is allowed. AssumeNeededOnEveryNode keeps the "
        "policy programmed on every node, whether or not it selects an endpoint there.",
        choices=rules.PERFORMANCE_HINTS, unique=True,
    ),
}  # fmt: skip
_NAMESPACED = _SHARED | {
    "selector": Note(
        f"Which endpoints of the namespace the policy applies to, by their labels; all when absent. {SELECTOR}",
        longest=checks.MAX_SELECTOR_CHARS,
    ),
    "service_account_selector": Note(
        "Limits the policy to endpoints whose service account has labels that this selector matches.",
        longest=checks.MAX_SELECTOR_CHARS,
    ),
}
_GLOBAL = _SHARED | {
    "selector": Note(
        f"Which endpoints the policy applies to, by their labels: workloads and hosts; all when absent. {SELECTOR}",
        longest=checks.MAX_SELECTOR_CHARS,
    ),
    "service_account_selector": Note(
        "Limits the policy to workloads whose service account has labels that this selector matches.",
        longest=checks.MAX_SELECTOR_CHARS,
    ),
    "namespace_selector": Note(
        "Limits the policy to workloads in namespaces whose labels this selector matches.",
        longest=checks.MAX_SELECTOR_CHARS,
    ),
    "do_not_track": Note(
        "Applies the rules before connection tracking, and leaves what they allow untracked: for hosts with very many "
        "connections. Both directions need a rule. Needs applyOnForward; excludes preDNAT."
    ),
    "pre_dnat": Note(
        "Applies the ingress rules of host endpoints before any DNAT, such as that of node ports. Needs "
        "applyOnForward; excludes doNotTrack, egress rules and the type Egress."
    ),
    "apply_on_forward": Note(
        "Applies the policy also to traffic that the host forwards, and not only to the host's own."
    ),
}
_STAGED = {
    "staged_action": Note(
        "What the policy stages: Set would create or change the policy of the same name, Delete would remove it (then "
        "no other field but tier may be given), Learn is for policies still being worked out, Ignore switches the "
        "staged policy off.",
        choices=rules.STAGED_ACTIONS, default="Set",
    )
}  # fmt: skip

POLICY: Abouts = {
    m.Tier: About("A stage of policy: a packet meets the tiers in their order.", {}),
    m.TierSpec: About(
        "Place of a tier among the others and what ends it.",
        {
            "order": Note(
                "Place of the tier: tiers with a lower order are applied first; the same order goes by name. "
                "1000000 is stored when absent. Those of the tiers default, kube-admin and kube-baseline are fixed."
            ),
            "default_action": Note(
                "What happens to traffic of an endpoint that policies of this tier select, when none of their rules "
                "decided: Deny, or Pass to the next tier.",
                choices=("Deny", "Pass"), default="Deny",
            ),
        },
    ),
    m.TierStatus: About("What was observed of a tier.", {"conditions": Note("Latest observations of the tier.")}),
    m.NetworkPolicy: About("What the endpoints of one namespace may send and receive.", {}),
    m.NetworkPolicySpec: About("Contents of a network policy.", _NAMESPACED),
    m.GlobalNetworkPolicy: About(
        "What endpoints of all namespaces, and hosts, may send and receive. It belongs to no namespace.", {}
    ),
    m.GlobalNetworkPolicySpec: About("Contents of a global network policy.", _GLOBAL),
    m.StagedNetworkPolicy: About(
        "A network policy that is calculated and reported but not enforced, to see what it would do.", {}
    ),
    m.StagedNetworkPolicySpec: About("Contents of a staged network policy.", _NAMESPACED | _STAGED),
    m.StagedGlobalNetworkPolicy: About(
        "A global network policy that is calculated and reported but not enforced, to see what it would do.", {}
    ),
    m.StagedGlobalNetworkPolicySpec: About("Contents of a staged global network policy.", _GLOBAL | _STAGED),
    m.StagedKubernetesNetworkPolicy: About(
        "A Kubernetes network policy that is calculated and reported but not enforced.", {}
    ),
    m.StagedKubernetesNetworkPolicySpec: About(
        "Contents of a Kubernetes network policy, in Kubernetes' own form, and what it stages.",
        _STAGED
        | {
            "pod_selector": Note("Which pods of the namespace the policy applies to, by their labels; {} is all."),
            "ingress": Note("What may reach the pods: traffic that any of the rules matches. None: nothing."),
            "egress": Note("What the pods may reach: traffic that any of the rules matches. None: nothing."),
            "policy_types": Note(
                "Directions that the policy applies to; Ingress when absent, and Egress if there are egress rules.",
                choices=rules.TYPES, unique=True,
            ),
        },
    ),
    m.Profile: About("Rules and labels that many endpoints share; they count after all tiers.", {}),
    m.ProfileSpec: About(
        "Contents of a profile.",
        {
            "ingress": _rules("incoming"),
            "egress": _rules("outgoing"),
            "labels_to_apply": Note("Labels that endpoints with this profile inherit; their own labels win."),
        },
    ),
    m.Rule: About(
        "One rule. Everything it names must match; what it does not name matches anything.",
        {
            "action": Note(
                "What happens to traffic that matches: Allow, Deny, Log (write a log line and try the next rule) or "
                "Pass (go on with the next tier).",
                choices=rules.ACTIONS, required=True,
            ),
            "ip_version": Note("Matches only this IP version.", choices=(4, 6)),
            "protocol": Note(f"Matches this protocol: {_PROTOCOLS}. Needed for ports that are numbers."),
            "not_protocol": Note(f"Matches all but this protocol: {_PROTOCOLS}."),
            "icmp": Note("Matches ICMP by type and code. Needs protocol ICMP or ICMPv6."),
            "not_icmp": Note("Matches ICMP of all but this type and code. Needs protocol ICMP or ICMPv6."),
            "source": Note("Where the traffic comes from."),
            "destination": Note("Where the traffic goes to."),
            "http": Note("Matches HTTP requests; for ingress rules with action Allow and protocol TCP only."),
            "metadata": Note("Free text about the rule; it changes nothing."),
        },
    ),
    m.RuleMetadata: About(
        "Free text about a rule.", {"annotations": Note("Keys and values that belong to the rule.")}
    ),
    m.ICMPFields: About(
        "Which ICMP messages.",
        {
            "type": Note("ICMP type, such as 8 for an echo request.", low=0, high=254),
            "code": Note("ICMP code within the type; needs a type.", low=0, high=255),
        },
    ),
    m.EntityRule: About(
        "One side of a rule. All that is named must match; entries of a list are alternatives.",
        {
            "nets": Note(
                "Matches addresses in any of these networks, given as CIDRs without host bits, all of one IP version.",
                most=rules.MAX_NETS, unique=True,
            ),
            "not_nets": Note(
                "Matches addresses in none of these networks, given as CIDRs without host bits.",
                most=rules.MAX_NETS, unique=True,
            ),
            "selector": Note(
                "Matches endpoints and network sets by their labels, in a namespaced policy those of its own namespace "
                f"unless namespaceSelector is given. {SELECTOR}",
                longest=checks.MAX_SELECTOR_CHARS,
            ),
            "not_selector": Note(
                "Matches what this selector does not select.", longest=checks.MAX_SELECTOR_CHARS
            ),
            "namespace_selector": Note(
                "Matches endpoints and network sets in namespaces whose labels this selector matches; global() stands "
                "for what is in no namespace.",
                longest=checks.MAX_SELECTOR_CHARS,
            ),
            "services": Note(
                "Matches the endpoints of a Kubernetes service; in the destination of egress and the source of ingress "
                "rules only. Excludes all other criteria of this side but source ports."
            ),
            "ports": Note(
                "Matches any of these ports: numbers (80), ranges (\"8000:8100\") or names of endpoints' ports (http). "
                "Needs protocol TCP, UDP or SCTP unless all are names.",
                most=rules.MAX_PORTS,
            ),
            "not_ports": Note(
                "Matches none of these ports: numbers, ranges or names.", most=rules.MAX_PORTS
            ),
            "service_accounts": Note("Matches endpoints by their service account."),
        },
    ),
    m.ServiceMatch: About(
        "A Kubernetes service.",
        {
            "name": Note("Name of the service.", required=True),
            "namespace": Note("Namespace of the service; the policy's own when absent. Global policies must name it."),
        },
    ),
    m.ServiceAccountMatch: About(
        "Service accounts by name and by label; both must match when both are given.",
        {
            "names": Note("Matches any of these service accounts."),
            "selector": Note(
                "Matches service accounts whose labels this selector matches.", longest=checks.MAX_SELECTOR_CHARS
            ),
        },
    ),
    m.HTTPMatch: About(
        "Which HTTP requests.",
        {
            "methods": Note("Matches any of these methods, such as GET.", most=rules.MAX_HTTP, unique=True),
            "paths": Note("Matches any of these paths.", most=rules.MAX_HTTP),
        },
    ),
    m.HTTPPath: About(
        "One path, exactly or by its beginning.",
        {
            "exact": Note("Matches this path alone.", longest=rules.MAX_HTTP_PATH_CHARS),
            "prefix": Note("Matches paths that begin with this.", longest=rules.MAX_HTTP_PATH_CHARS),
        },
    ),
    m.KubernetesIngressRule: About(
        "Traffic that may reach pods: from any of the peers, on any of the ports.",
        {
            "ports": Note("Ports of the pods; all when absent or empty."),
            "from_": Note("Who may send; everybody when absent or empty."),
        },
    ),
    m.KubernetesEgressRule: About(
        "Traffic that pods may send: to any of the peers, on any of the ports.",
        {
            "ports": Note("Ports of the peers; all when absent or empty."),
            "to": Note("Who may be reached; everybody when absent or empty."),
        },
    ),
    m.KubernetesPort: About(
        "A port, a range of ports, or all ports of a protocol.",
        {
            "protocol": Note("TCP when absent.", choices=("TCP", "UDP", "SCTP")),
            "port": Note("Number or name of the port; all when absent."),
            "end_port": Note("Last port of a range that begins with port, which must then be a number."),
        },
    ),
    m.KubernetesPeer: About(
        "A peer: either pods by their labels and their namespace's, or addresses.",
        {
            "pod_selector": Note("Pods by label, in the policy's namespace unless namespaceSelector is given."),
            "namespace_selector": Note("Namespaces by label; {} is all."),
            "ip_block": Note("Addresses; cannot be combined with selectors."),
        },
    ),
    m.KubernetesIPBlock: About(
        "Addresses of a network, with exceptions.",
        {
            "cidr": Note("The network.", required=True),
            "except_": Note("Networks within it that do not belong."),
        },
    ),
    m.LabelSelector: About(
        "Kubernetes' selector of labels; all terms must match, and an empty one matches everything.",
        {
            "match_labels": Note("Labels that must have exactly these values."),
            "match_expressions": Note("Further terms, all of which must match."),
        },
    ),
    m.LabelSelectorRequirement: About(
        "One term of a label selector.",
        {
            "key": Note("The label.", required=True),
            "operator": Note(
                "How the label's value relates to values.",
                choices=("In", "NotIn", "Exists", "DoesNotExist"), required=True,
            ),
            "values": Note("Values to compare with; for In and NotIn only."),
        },
    ),
}  # fmt: skip
