"""The cluster's certificates and tokens, new at each start, and the files that carry them."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from pathlib import Path

from tests.cluster.layout import API_PORT, API_SERVICE, NODE_ADDRESS, NODE_NAME, Failed

DAYS = "30"


def make(folder: Path, address: str) -> None:
    """Certificates for an API server at `address`, and tokens for an administrator and for the node."""
    folder.mkdir(mode=0o700)
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / "sa.key")
    _openssl("ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
    _openssl(
        *("req", "-x509", *_new_key(folder / "ca.key"), "-out", folder / "ca.crt", "-days", DAYS),
        *("-subj", "/CN=teragpt-test-cluster"),
    )
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = sorted({"127.0.0.1", API_SERVICE, address})
    alternatives = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{one}" for one in addresses)])
    _sign(folder, "api", "/CN=kube-apiserver", f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n")
    _sign(folder, "api-to-kubelet", "/O=system:masters/CN=kube-apiserver", "extendedKeyUsage=clientAuth\n")
    kubelet = f"subjectAltName=IP:{NODE_ADDRESS}\nextendedKeyUsage=serverAuth\n"
    _sign(folder, "kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}", kubelet)


def tokens(folder: Path, node: str) -> dict[str, str]:
    """A random token for each user, written to tokens.csv as the API server reads it."""
    users = {"admin": "system:masters", f"system:node:{node}": "system:nodes"}
    found = {user: secrets.token_urlsafe(32) for user in users}
    path = folder / "tokens.csv"
    path.touch(mode=0o600)
    path.write_text("".join(f'{found[user]},{user},{user},"{group}"\n' for user, group in users.items()))
    return found


def kubeconfig(path: Path, folder: Path, address: str, token: str) -> None:
    """Written for its owner alone, self-contained."""
    authority = base64.b64encode((folder / "ca.crt").read_bytes()).decode()
    name = "teragpt-test"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {"server": f"https://{address}:{API_PORT}", "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=2))  # JSON is YAML


def _sign(folder: Path, name: str, subject: str, extensions: str) -> None:
    request, extension = folder / f"{name}.csr", folder / f"{name}.ext"
    extension.write_text(extensions)
    _openssl("req", *_new_key(folder / f"{name}.key"), "-out", request, "-subj", subject)
    _openssl(
        *("x509", "-req", "-in", request, "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"),
        *("-out", folder / f"{name}.crt", "-days", DAYS, "-extfile", extension),
    )


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"openssl {arguments[0]}: {done.stderr.strip()}")
