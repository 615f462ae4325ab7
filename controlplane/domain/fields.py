"""The kinds of values that a spec is made of: bounded text and numbers, Kubernetes' names. It knows no field."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
RESOURCE = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
RESERVED_LABELS = frozenset({"app.kubernetes.io/managed-by", "controller-uid", "job-name"})
RESERVED_PREFIXES = frozenset(
    {
        "teragpt.io",
        "kueue.x-k8s.io",
        "batch.kubernetes.io",
        "training.kubeflow.org",
        "trainer.kubeflow.org",
        "jobset.sigs.k8s.io",
    }
)
BYTES = r"^[1-9][0-9]{0,14}(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
SECRET_KEY = r"^([-_a-zA-Z0-9]|\.[-_a-zA-Z0-9])[-._a-zA-Z0-9]*$"
NO_NUL = r"^[^\x00]*$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
IMAGE = r"^[!-~]{1,1024}$"

ENDS = "letters, digits, '-', '_' and '.', with a letter or digit at both ends"
DNS = "small letters, digits and '-', with a letter or digit at both ends"
UNITS = "k, M, G, T, P, Ki, Mi, Gi, Ti or Pi"
WORDS = {  # what each pattern allows, for people
    LABEL_KEY: f"1 to 63 {ENDS}; before it, if at all, a DNS name and '/'",
    LABEL_VALUE: f"up to 63 {ENDS}",
    NAMESPACE: f"1 to 63 {DNS}",
    SUBDOMAIN: f"words of up to 63 {DNS}, with dots between them",
    RESOURCE: "the name of a resource with its domain, such as nvidia.com/gpu",
    QUANTITY: f"a number such as 0.5, with m, {UNITS} behind it or nothing",
    BYTES: f"a number of bytes such as 512Mi: a whole number, with {UNITS} behind it or nothing",
    SECRET_KEY: "1 to 253 letters, digits, '-', '.' and '_', without two dots at the beginning",
    NO_NUL: "text without NUL",
    VARIABLE: "a letter or '_', then up to 127 letters, digits and '_'",
    IMAGE: "an image such as registry.example.com/team/teragpt:1.0, up to 1024 characters without spaces",
}


class Section(BaseModel):
    """A part of a spec: no unknown field, no coercion of text to numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BadField(ValueError):
    """What is wrong with one field, found where its section is looked at as a whole."""

    def __init__(self, field: str, detail: str) -> None:
        self.field = field
        super().__init__(detail)


def _thousandths(cpus: float) -> int | float:
    if round(cpus, 3) != cpus:
        raise ValueError(f"got {cpus}; allowed: a number of CPU cores with up to three decimals")
    return int(cpus) if cpus == int(cpus) else cpus


def _as_is(cpus: float) -> int | float:
    return cpus


def reserved_label(key: str) -> bool:
    """Whether a label is the control plane's, or one by which a controller of the cluster finds objects and pods."""
    return key in RESERVED_LABELS or key.rpartition("/")[0] in RESERVED_PREFIXES


def _free_label(key: str) -> str:
    if reserved_label(key):
        raise ValueError(f"got {key!r}; allowed: keys that TeraGPT and the cluster's controllers do not set themselves")
    return key


Cpus = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_thousandths), PlainSerializer(_as_is)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY)]
OwnLabel = Annotated[LabelKey, AfterValidator(_free_label)]  # a key that a user may set
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE)]
Word = Annotated[str, StringConstraints(pattern=LABEL_VALUE, min_length=1)]  # a label's value that says something
Subdomain = Annotated[str, StringConstraints(pattern=SUBDOMAIN, max_length=253)]  # DNS-1123: most objects' names
Namespace = Annotated[str, StringConstraints(pattern=NAMESPACE)]
Resource = Annotated[str, StringConstraints(pattern=RESOURCE, max_length=317)]  # an extended resource
SecretKey = Annotated[str, StringConstraints(pattern=SECRET_KEY, max_length=253)]
Image = Annotated[str, StringConstraints(pattern=IMAGE)]
Quantity = Annotated[str, StringConstraints(pattern=QUANTITY)]
Bytes = Annotated[str, StringConstraints(pattern=BYTES)]
