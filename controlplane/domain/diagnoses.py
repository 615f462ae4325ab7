"""What a reason comes from and what helps: one row for every stable word that the product can give.

`docs/diagnosis.md` shows the table. It knows no run; who explains one is `controlplane.services.explanations`.
"""

from __future__ import annotations

from typing import NamedTuple

HUNG = "HangDetected"
HELD_BACK = "WaitingForQuota"  # by Kueue: the object has no pods


class Diagnosis(NamedTuple):
    """The likely `cause` of a reason and its `mend`, a sentence each."""

    cause: str
    mend: str


ENDED = {  # why an attempt or a run is over, as the ranks themselves, the cluster or our timers tell
    "ConfigError": Diagnosis(
        "A setting cannot be used; the message names it, what was given and what is allowed.",
        "Make a new run with that setting mended: the same one would end the same way, so it is not tried again.",
    ),
    "BadData": Diagnosis(
        "The dataset is missing, broken, or made with another tokenizer.",
        "Give data.uri as the nodes see it, or make the dataset anew with `teragpt prepare`.",
    ),
    "Diverged": Diagnosis(
        "The loss exploded or ceased to be a number, also after going back to the last good checkpoint.",
        "Lower learning_rate, lengthen warmup_steps or look for broken text in the data; then `teragpt retry`.",
    ),
    "OutOfMemory": Diagnosis(
        "The machine's memory, not the GPU's, was too small for the rank.",
        "Give the pods more memory (compute.memory_per_node), fewer processes a node, or a smaller micro_batch.",
    ),
    "OOMKilled": Diagnosis(
        "A process was killed because its pod held more memory than its limit.",
        "Raise compute.memory_per_node, or start fewer processes on each node.",
    ),
    "CudaOutOfMemory": Diagnosis(
        "A GPU's memory was too small for the model, its activations and the optimizer's state.",
        "Lower micro_batch, set recompute, or shard over more GPUs (also by tp and pp); `teragpt plan` shows the need.",
    ),
    "DiskFull": Diagnosis(
        "A file system had no room left, most often that of the checkpoints.",
        "Free some, keep fewer checkpoints (keep_last), or give a larger checkpoint.uri; then `teragpt retry`.",
    ),
    "DiskReadOnly": Diagnosis(
        "A file system that was being written became read-only, or is mounted so.",
        "Have the node or the storage looked at (an error of the disk makes it read-only); then `teragpt retry`.",
    ),
    "PortInUse": Diagnosis(
        "Another process listened on the port at which the ranks meet.",
        "End what a former job left on the node; a restart takes another port where this machine is the cluster.",
    ),
    "DatasetBusy": Diagnosis(
        "Another process prepares the same dataset: most often the pod of an earlier attempt, on a node that was lost.",
        "Nothing has to be done: it is tried again; if it comes again, find and end the other process.",
    ),
    "MissingPackage": Diagnosis(
        "The image, or this machine's environment, lacks a package that the trainer imports.",
        "Install the extra that the last lines name (`pip install '.[train]'`), or run an image of this version.",
    ),
    "CollectiveTimeout": Diagnosis(
        "A rank waited in a collective (NCCL, gloo) for another one that never came.",
        "Look at the rank that the report names, at its node and network; raise step_timeout where steps are slow.",
    ),
    "RendezvousFailed": Diagnosis(
        "The nodes did not find each other in time.",
        "See that every pod ran and that the master's name and port can be reached (DNS, NetworkPolicy, firewall).",
    ),
    "PeerLost": Diagnosis(
        "Another rank went away first, and this one saw its connection break.",
        "Look for the other rank's end: `teragpt pods RUN` and `teragpt logs RUN --rank N`.",
    ),
    "Killed": Diagnosis(
        "Something ended the process by a signal, without counting as out of memory.",
        "Ask the node's kernel log (`dmesg`) who did; a node short of memory kills whole processes too.",
    ),
    "Crash": Diagnosis(
        "The rank ended with an error that has no name of its own; its last lines say which.",
        "Read the last lines, mend what they name, and `teragpt retry`.",
    ),
    "Stopped": Diagnosis(
        "Somebody other than the control plane asked the ranks to stop; they wrote a checkpoint.",
        "Nothing has to be done: the next attempt goes on from there, and it is not charged.",
    ),
    "Preempted": Diagnosis(
        "The cluster gave the place to something of higher priority.",
        "Nothing has to be done: it goes on when there is room; scheduling.priority raises its own.",
    ),
    "Evicted": Diagnosis(
        "The node put the pod out, for a drain or for lack of memory or disk.",
        "Nothing has to be done once; if it comes again, ask for the memory that it needs (compute.memory_per_node).",
    ),
    "NodeLost": Diagnosis(
        "The node fell silent or was removed.", "Nothing has to be done: the next attempt avoids that node."
    ),
    "Lost": Diagnosis(
        "The machine was restarted, or what followed the pod was killed, so nobody saw its end.",
        "Nothing has to be done: the next attempt goes on from the last checkpoint.",
    ),
    "Shutdown": Diagnosis("The node was shut down.", "Nothing has to be done: the next attempt avoids that node."),
    "InitError": Diagnosis(
        "An init container failed before the trainer started.",
        "Read its message; one that waits for the master needs the master's pod to be placed and pulled sooner.",
    ),
    "ImagePull": Diagnosis(
        "The image could not be pulled.",
        "See that --image names one that the nodes can pull, with an imagePullSecret where the registry asks for it.",
    ),
    "StartError": Diagnosis(
        "The pod's process could not be started; the message is the system's own.",
        "Mend what it names (a missing command, a full disk, a limit on processes), then `teragpt retry`.",
    ),
    "Rejected": Diagnosis(
        "The machine has become smaller than what the pod asks for.",
        "Ask for fewer CPUs, GPUs or less memory, or give the machine back what it had.",
    ),
    "Deleted": Diagnosis(
        "The pod was deleted before it had started.", "Nothing has to be done: the next attempt makes a new one."
    ),
    "Error": Diagnosis(
        "The container ended with an error and left no word of its own.",
        "Read the last lines of its log: `teragpt logs RUN`.",
    ),
    "Unknown": Diagnosis(
        "The cluster shows a failed pod and does not say why.",
        "Ask the cluster: `kubectl describe pod`, and its events.",
    ),
    "ObjectLost": Diagnosis(
        "The run's object was deleted by somebody other than the control plane.",
        "Stop runs with `teragpt cancel` or `suspend`; the next attempt goes on from the last checkpoint.",
    ),
    "PodLost": Diagnosis(
        "A pod was deleted or replaced while the others ran.",
        "Nothing has to be done: all ranks start again together from the last checkpoint.",
    ),
    "DeadlineExceeded": Diagnosis(
        "The run took longer than limits.max_runtime_s allows.",
        "`teragpt retry` with a longer limits.max_runtime_s: it goes on from the last checkpoint.",
    ),
    "PendingTimeout": Diagnosis(
        "The pods found no place within limits.max_pending_s.",
        "Ask for less, wait for room (`teragpt doctor` shows what there is), or raise limits.max_pending_s.",
    ),
    "UpstreamFailed": Diagnosis(
        "The run from whose checkpoint this one was to start has failed.",
        "Mend what ended that one and `teragpt retry` it; then `teragpt clone` this one with the new run as `after`.",
    ),
    "UpstreamCancelled": Diagnosis(
        "The run from whose checkpoint this one was to start was cancelled.",
        "`teragpt retry` that one; then `teragpt clone` this one with the new run as `after`.",
    ),
    HUNG: Diagnosis(
        "No step and no line of output came for longer than limits.max_silence_s.",
        "`teragpt stacks RUN` shows where every rank stood; a slow file system or network is the usual cause.",
    ),
    "Requeued": Diagnosis(
        "Not all pods found a place while other runs waited, so others go first.",
        "Nothing has to be done: it is tried again; ask for fewer nodes if it never fits.",
    ),
    "NoProgress": Diagnosis(
        "The run was interrupted again and again without a new checkpoint between.",
        "Mend what interrupts it (the message names the last), or write checkpoints more often (checkpoint_every).",
    ),
    "ManifestRejected": Diagnosis(
        "The cluster refused the run's object.",
        "Change the field that the message names; `teragpt run --preview` asks the cluster without making anything.",
    ),
    "NameConflict": Diagnosis(
        "An object of that name, and not of this run, is on the cluster.", "Remove it, or give the run another name."
    ),
}
WAITING = {  # why a run does not train yet
    "ClusterUnreachable": Diagnosis(
        "The cluster's API does not answer.",
        "Nothing is lost: the run is submitted when it does; `teragpt doctor` tells what it says.",
    ),
    "WaitsForGPUs": Diagnosis(
        "The GPUs of its namespace are held by other runs, or promised to those before it.",
        "Wait, cancel or suspend one of them, ask for fewer GPUs, or have the quota raised (`--gpu-quotas`).",
    ),
    "WaitsForTurn": Diagnosis("Another run of several pods is finding its places first.", "Nothing has to be done."),
    "QueuePaused": Diagnosis(
        "Somebody has paused its queue: no attempt is begun, and what runs goes on.",
        "Nothing is lost: it is begun when the queue is resumed (`teragpt queue resume`).",
    ),
    "QueueDraining": Diagnosis(
        "Somebody is draining its queue: no run is begun, and those that have begun go on to their ends.",
        "Nothing is lost: it is begun when the queue is resumed (`teragpt queue resume`).",
    ),
    "WaitsForRun": Diagnosis(
        "It starts from the last checkpoint of another run, which has not succeeded yet.",
        "Nothing has to be done: it is begun when that one has succeeded.",
    ),
    "WaitsForSweep": Diagnosis(
        "As many runs of its sweep as may go at a time are under way.",
        "Nothing has to be done: it is begun when one of them has ended.",
    ),
    "Queued": Diagnosis(
        "This machine's CPUs, GPUs or memory are in use by other runs.",
        "Wait, or cancel or suspend one (`teragpt runs --phase running`).",
    ),
    "Starting": Diagnosis("The pod's process is being started.", "Nothing has to be done."),
    HELD_BACK: Diagnosis(
        "The Kueue queue has not admitted it.", "Wait for quota, or give scheduling.queue another queue."
    ),
    "Suspended": Diagnosis(
        "Somebody other than the control plane has suspended the object.",
        "Ask who set `suspend` on it; a run is suspended with `teragpt suspend`.",
    ),
    "OperatorAbsent": Diagnosis(
        "Nothing on the cluster makes pods of this kind of object.",
        "Start the training operator, or set --kind to one that the cluster has (`teragpt doctor`).",
    ),
    "PodsNotCreated": Diagnosis("The cluster is still making the pods.", "Nothing has to be done."),
    "FailedCreate": Diagnosis(
        "The cluster refuses to make the pods.",
        "Mend what the message names; a quota, a policy or a service account is the usual cause.",
    ),
    "QuotaExceeded": Diagnosis(
        "The namespace's ResourceQuota leaves no room for the pods.",
        "Ask for less, end something, or have the quota raised.",
    ),
    "LimitRange": Diagnosis(
        "A LimitRange of the namespace does not allow what the pods ask for.",
        "Ask for what the message allows (compute.cpus_per_node, compute.memory_per_node), or have the range changed.",
    ),
    "PodSecurity": Diagnosis(
        "The namespace's Pod Security level refuses the pods.",
        "Take out of pod_overrides what the message names, or use a namespace that allows it.",
    ),
    "AdmissionDenied": Diagnosis(
        "A webhook or policy of the cluster refuses the pods.", "Change what the message asks for."
    ),
    "WebhookUnavailable": Diagnosis(
        "A webhook that must see the pods does not answer.",
        "Have the cluster's administrator restart it; the pods are made when it answers.",
    ),
    "Scheduling": Diagnosis("The scheduler has not looked at the pod yet.", "Nothing has to be done."),
    "SchedulingGated": Diagnosis("A scheduling gate holds the pod back.", "Wait for the controller that set the gate."),
    "Unschedulable": Diagnosis(
        "No node has what the pods ask for, or none may take them.",
        "Ask for less, free a node, or set the tolerations and node_selector that the message asks for.",
    ),
    "VolumeNotBound": Diagnosis(
        "A claim that the pods mount is missing or has no volume.",
        "Make the claim that the message names, or give another checkpoint.uri.",
    ),
    "VolumeNotMounted": Diagnosis(
        "The node cannot mount a volume.",
        "Mend what the message names; a claim that only one node may write (ReadWriteOnce) serves one node.",
    ),
    "SandboxFailed": Diagnosis(
        "The node cannot set up the pod's network.", "Have the node's network plugin looked at."
    ),
    "ImagePulling": Diagnosis("The node is pulling the image.", "Nothing has to be done; large images take minutes."),
    "ImagePullBackOff": Diagnosis(
        "The image cannot be pulled.",
        "See that --image names one that the nodes can pull, with an imagePullSecret where the registry asks for it.",
    ),
    "ContainerCreating": Diagnosis("The node is making the container.", "Nothing has to be done."),
    "PodInitializing": Diagnosis("An init container is at work.", "Nothing has to be done."),
    "InitWaitingForMaster": Diagnosis(
        "The workers wait until the master's name can be looked up.",
        "See why the master's pod does not run: `teragpt pods RUN`.",
    ),
    "CreateContainerConfigError": Diagnosis(
        "The container refers to a Secret or ConfigMap that is not there.",
        "Make what the message names, or take it out of the run's env.",
    ),
    "CreateContainerError": Diagnosis(
        "The node cannot make the container.",
        "Mend what the message names; a command that the image lacks is the usual cause.",
    ),
    "RunContainerError": Diagnosis(
        "The node cannot start the container.",
        "Mend what the message names; a missing device plugin or runtime is the usual cause.",
    ),
}
DIAGNOSES = ENDED | WAITING
UNLISTED = Diagnosis(
    "The word is the cluster's own; its message says more.",
    "Ask the cluster: `kubectl describe` the pod, and its events.",
)


def diagnose(reason: str) -> Diagnosis:
    """The row of a reason; for a word of the cluster's own, where to ask."""
    return DIAGNOSES.get(reason, UNLISTED)
