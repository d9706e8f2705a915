// SPDX-License-Identifier: Apache-2.0
// Every method of the published npm package against a running agent: methods.js DSTACK_SOCKET TAPPD_SOCKET.
const assert = require('node:assert/strict');
const { X509Certificate, createPrivateKey } = require('node:crypto');
const { DstackClient, TappdClient } = require('@phala/dstack-sdk');
const { toViemAccount, toViemAccountSecure } = require('@phala/dstack-sdk/viem');
const { toKeypair, toKeypairSecure } = require('@phala/dstack-sdk/solana');

console.warn = () => {};

// The chain, leaf first; the key belongs to the leaf, and each certificate is signed by the next.
function certificates(reply) {
  const chain = reply.certificate_chain.map((pem) => new X509Certificate(pem));
  assert.ok(chain.length >= 2 && chain[0].checkPrivateKey(createPrivateKey(reply.key)));
  chain.slice(1).forEach((issuer, at) => assert.ok(chain[at].verify(issuer.publicKey)));
  assert.equal(reply.asUint8Array().length, 138);
  assert.equal(reply.asUint8Array(32).length, 32);
  return chain;
}

async function newer(client) {
  assert.ok(await client.isReachable());
  const info = await client.info();
  assert.equal(info.app_name, 'h\u00e9llo');
  assert.ok(info.app_id.length === 40 && info.tcb_info.rtmr3.length === 96 && info.tcb_info.event_log.length >= 10);
  assert.equal(JSON.parse(info.tcb_info.app_compose).name, info.app_name);
  assert.ok((await client.version()).version);

  const key = await client.getKey('wallet/eth', 'mainnet');
  assert.ok(key.key.length === 32 && key.signature_chain.length === 2);
  assert.equal(toViemAccount(key).address, toViemAccountSecure(key).address);
  const edwards = await client.getKey('wallet/sol', 'mainnet', 'ed25519');
  assert.ok(toKeypair(edwards).publicKey.equals(toKeypairSecure(edwards).publicKey));
  assert.notDeepEqual((await client.getKey('wallet/sol')).key, edwards.key);

  await client.emitEvent('sdk-js', 'payload');
  const quote = await client.getQuote('report');
  assert.equal(quote.report_data, Buffer.from('report').toString('hex') + '00'.repeat(58));
  assert.ok(JSON.parse(quote.event_log).some((event) => event.event === 'sdk-js'));
  assert.equal(quote.replayRtmrs()[3], (await client.info()).tcb_info.rtmr3);
  assert.ok((await client.attest(Buffer.from('report'))).attestation.length > 2000);
  assert.ok((await client.tdxQuote('report', 'raw')).quote);
  await assert.rejects(client.deriveKey('p'));

  const now = Math.floor(Date.now() / 1000);
  const [leaf] = certificates(await client.getTlsKey({
    subject: 'app.example.com', altNames: ['app.example.com'], usageRaTls: true, usageClientAuth: true,
    notBefore: now - 60, notAfter: now + 3600, withAppInfo: true,
  }));
  assert.equal(Date.parse(leaf.validTo) / 1000, now + 3600);
  assert.match(leaf.subjectAltName, /app\.example\.com/);
  const tls = await client.getTlsKey();
  certificates(tls);
  toViemAccountSecure(tls);
  toKeypairSecure(tls);

  for (const [algorithm, data] of [['ed25519', 'data'], ['secp256k1', Buffer.from('data')],
    ['secp256k1_prehashed', Buffer.alloc(32, 7)]]) {
    const signed = await client.sign(algorithm, data);
    assert.ok(signed.signature_chain.length === 3);
    assert.ok((await client.verify(algorithm, data, signed.signature, signed.public_key)).valid);
    const other = Buffer.alloc(32, 9);
    assert.ok(!(await client.verify(algorithm, other, signed.signature, signed.public_key)).valid);
  }
}

async function older(client) {
  assert.ok(await client.isReachable());
  const chain = certificates(await client.deriveKey('my/path'));
  const named = certificates(await client.deriveKey('my/path', 'subject', ['a.example.com']));
  assert.ok(named[0].publicKey.equals(chain[0].publicKey));
  for (const algorithm of ['sha256', 'sha384', 'sha512', 'sha3-256', 'sha3-384', 'sha3-512',
    'keccak256', 'keccak384', 'keccak512', 'raw', undefined]) {
    const quote = await client.tdxQuote('report', algorithm);
    assert.equal(quote.replayRtmrs()[3].length, 96);
  }
  await assert.rejects(client.tdxQuote('report', 'md5'), /hash_algorithm/);
}

(async () => {
  const [dstack, tappd] = process.argv.slice(2);
  await newer(new DstackClient(dstack));
  await older(new TappdClient(tappd));
  console.log('js: all methods answered');
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
