"""What is wrong with a release in a cluster, in plain words, and what to do about it.

Above `reading`. Each look is at one kind of object and knows what its states mean to us; nothing
here asks the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

from talkingmachines.cli.cluster.reading import Object, Seen
from talkingmachines.cli.doctor import Finding

_EVENTS = 8
_RESTARTS = 5
_OPERATOR = (
    "install the KubeRay operator: helm install kuberay-operator kuberay/kuberay-operator "
    "--namespace kuberay-system --create-namespace"
)

# Why a container waits → what to do. What it says itself is shown beside it.
_WAITS = {
    "ImagePullBackOff": "build or push the image, or name where it is: image.registry, image.tag, "
    "image.pullSecrets",
    "ErrImagePull": "build or push the image, or name where it is: image.registry, image.tag, "
    "image.pullSecrets",
    "InvalidImageName": "correct image.registry or image.tag",
    "CreateContainerConfigError": "make the Secret that it names, with the key that it names",
    "CrashLoopBackOff": "read why: kubectl -n {namespace} logs {pod} -c {container} --previous",
}
# What the scheduler lacks → what to do.
_LACKS = (
    ("Insufficient nvidia.com/gpu", "add nodes with free GPUs, or lower replicas.least"),
    ("Insufficient", "add nodes, or lower the resources that are asked for"),
    ("untolerated taint", "give the part tolerations for that taint"),
    ("didn't match Pod's node affinity", "correct nodeSelector, or label nodes with it"),
    ("unbound", "make the volume claim, or a storage class that does: kubectl get pvc"),
    ("persistentvolumeclaim", "make the claim that it names, or correct its name in the values"),
)
_STATES = {
    "DEPLOY_FAILED": "read its message; a model that cannot be loaded is named there",
    "UNHEALTHY": "replicas fail their health checks: look for DeviceHangs in docs/operate.md",
    "NOT_STARTED": "wait: the cluster has not taken the configuration yet",
    "DEPLOYING": "wait: models are being loaded, which takes minutes",
}


def findings(seen: Seen) -> list[Finding]:
    """All there is to say, with what is wrong first."""
    looks = (_engines, _deployments, _pods, _autoscalers, _events)
    found = [Finding("release", f"{seen.release} in {seen.namespace}")]
    found += [finding for look in looks for finding in look(seen)]
    return sorted(found, key=lambda one: (not one.failed, not one.advice))


def _engines(seen: Seen) -> Iterator[Finding]:
    if seen.engines is None:
        found = "this cluster does not know RayService"
        yield Finding("engines", found, _OPERATOR, failed=True)
        return
    if not seen.engines:
        advice = "kubectl get events: an admission webhook may have refused them"
        yield Finding("engines", "the release has no RayService", advice, failed=True)
    for engine in seen.engines:
        yield from _engine(engine, seen.namespace)


def _engine(engine: Object, namespace: str) -> Iterator[Finding]:
    name, status = engine["metadata"]["name"], engine.get("status") or {}
    active = (status.get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    pending = (status.get("pendingServiceStatus") or {}).get("applicationStatuses") or {}
    if not status:
        advice = f"the operator does not look after {namespace}: {_OPERATOR}"
        yield Finding(name, "nobody has touched it", advice, failed=True)
        return
    for application, state in (pending | active).items():
        yield _application(f"{name}, {application}", state)
    if pending and active:
        advice = "an upgrade: both clusters are paid for until it is over"
        yield Finding(name, "a second cluster starts beside the one that serves", advice)
    if not status.get("numServeEndpoints") and active:
        advice = "no worker is ready to be called: see its pods"
        yield Finding(name, "no endpoint takes calls", advice, failed=True)
    for condition in status.get("conditions") or []:
        if condition["type"] == "RayServiceReady" and condition["status"] != "True" and not active:
            found = f"not ready: {condition.get('message') or condition.get('reason')}"
            yield Finding(name, found, "see its pods, below", failed=True)


def _application(what: str, state: Object) -> Finding:
    is_ = str(state.get("status"))
    deployments = (state.get("serveDeploymentStatuses") or {}).values()
    said = "\n".join(one.get("message") or "" for one in [*deployments, state]).strip()
    if is_ == "RUNNING":
        return Finding(what, "runs")
    advice = _STATES.get(is_, "see the logs of its workers")
    failed = is_ in ("DEPLOY_FAILED", "UNHEALTHY")
    return Finding(what, f"{is_}: {_last_line(said)}" if said else is_, advice, failed=failed)


def _deployments(seen: Seen) -> Iterator[Finding]:
    for item in seen.deployments:
        wanted = item["spec"].get("replicas", 1)
        ready = (item.get("status") or {}).get("readyReplicas") or 0
        short = ready < wanted
        advice = "see its pods, below" if short else ""
        found = f"{ready} of {wanted} ready"
        yield Finding(item["metadata"]["name"], found, advice, failed=short and not ready)


def _pods(seen: Seen) -> Iterator[Finding]:
    for pod in seen.pods:
        yield from _pod(pod, seen.namespace)


def _pod(pod: Object, namespace: str) -> Iterator[Finding]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            said = condition.get("message") or ""
            yield Finding(name, f"has no node: {said}", _lack(said), failed=True)
    for container in _containers(status):
        yield from _container(name, container, namespace)
    if status.get("phase") == "Failed" and status.get("reason") == "Evicted":
        found = f"was evicted: {status.get('message', '')}"
        yield Finding(name, found, "give it more of what its node ran out of", failed=True)


def _containers(status: Object) -> list[Object]:
    return [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]


def _container(pod: str, container: Object, namespace: str) -> Iterator[Finding]:
    what = f"{pod}, {container['name']}"
    waits = (container.get("state") or {}).get("waiting") or {}
    died = (container.get("lastState") or {}).get("terminated") or {}
    advice = _WAITS.get(waits.get("reason", ""))
    if died.get("reason") == "OOMKilled":
        found = "was killed because its memory was used up"
        yield Finding(what, found, "raise resources.limits.memory of its part", failed=True)
    elif advice is not None:
        told = advice.format(namespace=namespace, pod=pod, container=container["name"])
        found = f"{waits['reason']}: {waits.get('message', '')}".rstrip(": ")
        yield Finding(what, found[:300], told, failed=True)
    elif container.get("restartCount", 0) >= _RESTARTS:
        found = f"started again {container['restartCount']} times, last with code "
        told = f"kubectl -n {namespace} logs {pod} -c {container['name']} --previous"
        yield Finding(what, found + str(died.get("exitCode", "?")), told)


def _lack(said: str) -> str:
    return next((advice for text, advice in _LACKS if text in said), "kubectl describe pod")


def _autoscalers(seen: Seen) -> Iterator[Finding]:
    for item in seen.autoscalers:
        for condition in (item.get("status") or {}).get("conditions") or []:
            name = f"{item['metadata']['name']}, autoscaling"
            if condition["type"] == "ScalingActive" and condition["status"] == "False":
                advice = "give Kubernetes the metric tm_leases of pods: an adapter, or by: keda"
                yield Finding(name, str(condition.get("message"))[:300], advice)
            elif condition["type"] == "ScalingLimited" and condition["status"] == "True":
                found = str(condition.get("message"))[:300]
                if condition.get("reason") == "TooManyReplicas":
                    yield Finding(name, found, "raise gateway.autoscaling.most")


def _events(seen: Seen) -> Iterator[Finding]:
    """Warnings that no state above tells of; each once."""
    told = set[tuple[str, str]]()
    for event in seen.events:
        about, reason = event["involvedObject"].get("name", ""), str(event.get("reason"))
        if (about, reason) in told or reason in ("BackOff", "Unhealthy", "FailedScheduling"):
            continue
        told.add((about, reason))
        if len(told) > _EVENTS:
            return
        advice = "make what it names" if reason == "FailedMount" else "kubectl describe it"
        yield Finding(about, f"{reason}: {_last_line(str(event.get('message')))}", advice)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:300]
