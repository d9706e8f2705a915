# SPDX-License-Identifier: Apache-2.0
"""Every method of the published Python packages against a running agent: methods.py DSTACK_SOCKET TAPPD_SOCKET."""

import asyncio
import json
import sys
import time
import warnings

from cryptography import x509
from cryptography.hazmat.primitives import serialization
import tappd_client
from dstack_sdk import AsyncDstackClient, AsyncTappdClient, DstackClient, TappdClient
from dstack_sdk.ethereum import to_account, to_account_secure
from dstack_sdk.solana import to_keypair, to_keypair_secure

warnings.simplefilter("ignore")


def certificates(reply):
    """The chain, leaf first; the key belongs to the leaf, and each certificate is signed by the next."""
    chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in reply.certificate_chain]
    key = serialization.load_pem_private_key(reply.key.encode(), None)
    assert key.public_key() == chain[0].public_key()
    for leaf, issuer in zip(chain, chain[1:]):
        leaf.verify_directly_issued_by(issuer)
    assert len(chain) >= 2 and len(reply.as_uint8array()) == 138 and len(reply.as_uint8array(32)) == 32
    return chain


def quoted(client, reply):
    events = reply.decode_event_log()
    assert len(reply.decode_quote()) > 1000 and events[-1].imr == 3
    assert reply.replay_rtmrs()[3] == client.info().tcb_info.rtmr3


def refused(call):
    try:
        call()
    except Exception:
        return
    raise AssertionError("not refused")


def newer(client):
    assert client.is_reachable()
    info = client.info()
    tcb = info.tcb_info
    assert len(info.app_id) == 40 and len(info.instance_id) == 40 and info.app_name == "h\u00e9llo"
    assert len(tcb.rtmr0) == 96 and tcb.os_image_hash == info.os_image_hash and tcb.compose_hash == info.compose_hash
    assert json.loads(tcb.app_compose)["name"] == info.app_name and json.loads(info.vm_config)
    assert json.loads(info.key_provider_info)["name"] in ("kms", "none")
    assert client.version().version

    key = client.get_key("wallet/eth", "mainnet")
    assert len(key.decode_key()) == 32 and len(key.decode_signature_chain()) == 2
    assert to_account(key).address == to_account_secure(key).address
    edwards = client.get_key("wallet/sol", "mainnet", "ed25519")
    assert to_keypair(edwards).pubkey() == to_keypair_secure(edwards).pubkey()
    assert edwards.key != client.get_key("wallet/sol", "mainnet").key
    assert client.get_key().key == client.get_key("", "", "k256").key

    client.emit_event("sdk-python", "payload")
    refused(lambda: client.emit_event("app-id", "payload"))
    quote = client.get_quote("report")
    assert quote.report_data == b"report".hex() + "00" * 58 and json.loads(quote.vm_config)
    quoted(client, quote)
    quoted(client, client.get_quote(b"\x01" * 64))
    assert len(client.attest(b"report").decode_attestation()) > 1000

    chain = certificates(client.get_tls_key("app.example.com", ["app.example.com"], True, True, True))
    assert any(e.oid.dotted_string.endswith("62397.1.1") for e in chain[0].extensions)
    now = int(time.time())
    dated = client.get_tls_key("a", not_before=now - 60, not_after=now + 3600, with_app_info=True)
    leaf = certificates(dated)[0]
    assert leaf.not_valid_after_utc.timestamp() == now + 3600
    certificates(client.get_tls_key())
    to_account_secure(dated), to_keypair_secure(dated)
    refused(lambda: client.get_tls_key("kms"))

    for algorithm, data in (("ed25519", "data"), ("secp256k1", b"data"), ("secp256k1_prehashed", b"\x07" * 32)):
        signed = client.sign(algorithm, data)
        assert len(signed.decode_signature_chain()) == 3
        check = (signed.decode_signature(), signed.decode_public_key())
        assert client.verify(algorithm, data, *check).valid
        assert not client.verify(algorithm, b"\x09" * 32, *check).valid


def older(client):
    assert client.is_reachable()
    info = client.info()
    assert len(info.app_id) == 40 and info.tcb_info.rootfs_hash and len(info.tcb_info.mrtd) == 96
    chain = certificates(client.derive_key("my/path"))
    names = client.derive_key("my/path", "subject", ["a.example.com"])
    assert certificates(names)[0].public_key() == chain[0].public_key()
    for algorithm in ("sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512",
                      "keccak256", "keccak384", "keccak512", "raw"):
        quoted(client, client.tdx_quote("report", algorithm))
    quoted(client, client.tdx_quote(b"\x05" * 64))


def oldest(client):
    info = client.info()
    assert len(info["app_id"]) == 40 and json.loads(info["tcb_info"])["rtmr3"]
    key = client.derive_key("my/path")
    assert key.key.startswith("-----BEGIN PRIVATE KEY-----") and len(key.certs) >= 2
    assert client.derive_key("my/path", "subject", ["a.example.com"]).key == key.key
    for data in (b"report", "report"):
        quote = client.tdx_quote(data)
        assert quote.replay_rtmrs()[3] == json.loads(info["tcb_info"])["rtmr3"]


async def asynchronous(dstack, tappd):
    async with AsyncDstackClient(dstack) as client:
        assert await client.is_reachable() and (await client.version()).version
        assert (await client.info()).app_id and (await client.get_key("a", "b", "ed25519")).key
        await client.emit_event("sdk-python-async", b"payload")
        quotes = await asyncio.gather(*(client.get_quote(str(number)) for number in range(8)))
        assert all(len(quote.decode_quote()) > 1000 for quote in quotes)
        assert (await client.attest("report")).attestation
        certificates(await client.get_tls_key("a", usage_ra_tls=True))
        signed = await client.sign("ed25519", "data")
        assert (await client.verify("ed25519", "data", signed.decode_signature(), signed.decode_public_key())).valid
    async with AsyncTappdClient(tappd) as client:
        assert (await client.info()).app_id
        certificates(await client.derive_key("p"))
        assert (await client.tdx_quote("report", "sha256")).quote


def main():
    dstack, tappd = sys.argv[1:]
    # What `with` gives is the asynchronous client inside.
    client, tappd_sync = DstackClient(dstack), TappdClient(tappd)
    with client:
        newer(client)
    with tappd_sync:
        older(tappd_sync)
    oldest(tappd_client.TappdClient(tappd))
    asyncio.run(asynchronous(dstack, tappd))
    print("python: all methods answered")


main()
