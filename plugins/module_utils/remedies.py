"""What to do about a pod that does not get there, by what Kubernetes or the program itself says."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What to do, by what was said (a pattern). All that match are told; if none does, the second of the pair.
Remedies = tuple[Sequence[tuple[str, str]], str]

NO_IMAGE: Remedies = (
    [
        ("InvalidImageName", "Correct the image's name: it is not one (registry/name:tag, in lower case)."),
        (
            "ErrImageNeverPull",
            "The image may not be pulled, and is not on the node: load it with playbooks/images.yml.",
        ),
        ("no space left", "The node's disk is full: free some of it. An engine's image takes 10 to 30 GB."),
        (
            "toomanyrequests|rate limit",
            "The registry gives no more to those without an account: name credentials (engines_image_pull_secrets), "
            "or load the image with playbooks/images.yml.",
        ),
        (
            "no such host|dial tcp|i/o timeout|TLS handshake|deadline exceeded",
            "The node does not reach the registry: mend its network, or load the image with playbooks/images.yml.",
        ),
        (
            "(?i)unauthorized|denied|authentication required|authorization failed|forbidden",
            "The registry wants credentials (engines_image_pull_secrets), or has no image of that name.",
        ),
        ("not found|manifest unknown", "The registry has no such image: correct its name and tag."),
    ],
    "Correct the image's name and tag. If its registry is private, name credentials (engines_image_pull_secrets). "
    "If the node does not reach the registry, load the image with playbooks/images.yml.",
)
NO_CONFIGURATION = (
    "Create the Secret or ConfigMap that is missing (or the key in it) in this namespace, or correct its name in the "
    "deployment."
)
NO_CREATION = (
    "If it names a program or a file, correct the engine's command or image. If it names a device or a runtime, "
    "see to the node's container runtime (for GPUs: the NVIDIA container toolkit)."
)
NO_MEMORY = (
    "Raise resources.limits.memory of this deployment, or let it need less: a smaller context_length, a smaller or "
    "quantized model."
)
NO_MEMORY_ON_NODE = (
    "Free memory on the node, or let this deployment need less: a smaller context_length, a smaller "
    "or quantized model."
)
ENDED: Remedies = (
    [
        (
            "Free memory on device .* is less than desired",
            "The GPU's memory is in use: lower gpu_memory of this deployment, or of those that start before it on the "
            "same GPU (engines take up to 1 GB beyond their shares); nvidia-smi tells how much is used.",
        ),
        (
            "No available memory for the cache blocks|(?i:Not enough memory)|KV cache .*larger than the available",
            "Its share of the GPU does not hold weights and context: raise gpu_memory, or lower context_length.",
        ),
        (
            "CUDA out of memory|OutOfMemoryError",
            "The GPU's memory is full: lower context_length, or gpu_memory of those on the same GPU.",
        ),
        (
            "unrecognized arguments|invalid choice|the following arguments are required",
            "This release of the engine does not take that command line: correct args of this deployment.",
        ),
        (
            "GatedRepo|gated repo|401 Client Error|403 Client Error",
            "The hub wants a token with access to the model: HF_TOKEN in the environment of the playbook, after the "
            "model's licence was accepted on its page.",
        ),
        (
            "No CUDA GPUs are available|Failed to infer device type|Found no NVIDIA driver",
            "The pod got no GPU: see engines_runtime_class, and docs/gpu.md.",
        ),
    ],
    "Correct what its last lines complain about (mostly args, env, weights or context_length of this deployment), "
    "then run the same command again.",
)
PROBE_KILLED = (
    "Kubernetes itself ended it, because its probe failed (see the events). If it only needs longer to start, raise "
    "startup_timeout of this deployment."
)
NO_PLACE: Remedies = (
    [
        (
            r"Insufficient \S*/",
            "Too few GPUs are free: take a deployment out of the stack, lower gpus or replicas, or let deployments "
            "share a GPU (gpu_memory). If no node has any (kubectl describe nodes, Allocatable), its device plugin "
            "does not run.",
        ),
        (
            "Insufficient (memory|cpu|ephemeral-storage)",
            "Lower resources.requests of this deployment (where there are none, its limits count), take another "
            "deployment out of the stack, or add a larger node.",
        ),
        (
            "node affinity/selector",
            "Give a node the labels that the node selector wants, or correct the selector.",
        ),
        ("disk-pressure", "The node's disk is nearly full: free some of it."),
        ("memory-pressure", "The node's memory is nearly full: free some of it."),
        (
            "not-ready|unreachable|unschedulable",
            "A node is not ready, or was cordoned: see kubectl get nodes.",
        ),
        (
            r"untolerated taint(?!.*node\.kubernetes\.io)",
            "A node is kept free by a taint: add a toleration for it, or remove the taint.",
        ),
        (
            "(?i)persistentvolumeclaim",
            "A PersistentVolumeClaim is missing or has no volume: see kubectl get pvc; it needs a storage class that "
            "exists, or a volume that fits.",
        ),
        ("free ports", "Another pod has the same port of the node: stop it, or use another port."),
        ("Too many pods", "The node runs as many pods as it may: remove some, or add a node."),
    ],
    "Change what this deployment asks for, or add a node that has it.",
)
NODE: Remedies = (
    [
        (
            "no runtime for",
            "The node's container runtime does not know that runtime: install the NVIDIA container toolkit in the "
            "node, or correct the RuntimeClass.",
        ),
        (
            "hostPath|is not a directory",
            "Make that folder on the node (k3d: the node sees folders of the host as of its start; if one was deleted "
            "there: make stop, make start).",
        ),
        ("not found", "Create what is missing, or correct its name in the deployment's volumes."),
    ],
    "Mend the node, or take it out of the cluster.",
)
LOST: Remedies = (
    [
        ("Evicted", "The node ran short of what the message names: free some there, or use a larger node."),
        (
            "UnexpectedAdmissionError|OutOf",
            "The node has not what the scheduler counted on, mostly a GPU: see whether the device plugin runs, and "
            "what else uses the GPU.",
        ),
    ],
    "See to the node it ran on, then run the same command again.",
)
REFUSED: Remedies = (
    [
        (
            "exceeded quota|must specify",
            "Raise the namespace's ResourceQuota, or lower resources, gpus or replicas of this deployment.",
        ),
        ("RuntimeClass", "Create the RuntimeClass, or take it out of the deployment."),
        (
            "PodSecurity",
            "The namespace's Pod Security level forbids what the pod needs: relax it, or use another one.",
        ),
        ("service account", "Create the ServiceAccount in this namespace."),
        (
            "per (Container|Pod)",
            "Change resources of this deployment to what the namespace's LimitRange allows.",
        ),
        (
            "webhook",
            "An admission webhook of the cluster refused it or does not answer: ask who runs the cluster.",
        ),
    ],
    "Change what the message names in the deployment, or what forbids it in the cluster.",
)
PAUSED = "Resume it with kubectl rollout resume."
LATE = (
    "If it is still at work (loading, downloading), raise startup_timeout of this deployment. "
    "If it hangs, its log says where."
)


def remedy(said: str, remedies: Remedies) -> str:
    """What to do about what was said."""
    known, otherwise = remedies
    return " ".join(sentence for pattern, sentence in known if re.search(pattern, said)) or otherwise
