// A certified OpenID provider on loopback, for tests. Under each host name it is another issuer, so
// that it also works behind a proxy.
//
// Each line of its input has all its data, {"keys": [...], "users": {...}}, and replaces the data of the
// line before. It answers each line with a line that contains its port. It ends when its input ends.

import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

import Provider from 'oidc-provider';
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js';

const SIGN_IN = '/sign-in/';
const SCOPES = 'openid profile email';
const PAGE = `<!DOCTYPE html><html lang="en"><head><title>Identity provider</title></head><body>
<form method="post"><label>Name <input name="login"></label>
<label>Password <input name="password" type="password"></label>
<button>Sign in</button></form></body></html>`;

console.info = console.error; // standard output is for the answers only

let known = {};
const issuers = new Map();

function account(_, id) {
  const { name, password, claims, elsewhere = {} } = known.users[id];
  const own = { sub: id, name, email: `${id}@users.example`, ...claims };
  // the claims `elsewhere` are not in the ID token, only in the answer of the userinfo endpoint
  return { accountId: id, claims: (use) => (use === 'userinfo' ? { ...own, ...elsewhere } : own) };
}

async function grant({ oidc }) {
  const given = new oidc.provider.Grant({
    clientId: oidc.client.clientId,
    accountId: oidc.session.accountId,
  });
  given.addOIDCScope(SCOPES);
  await given.save();
  return given;
}

function issuer(host) {
  const provider = new Provider(`http://${host}`, {
    adapter: (model) => new MemoryAdapter(model), // one memory for all issuers
    jwks: { keys: known.keys },
    claims: { openid: ['sub', ...known.claims], profile: ['name'], email: ['email'] },
    conformIdTokenClaims: false,
    features: { devInteractions: { enabled: false }, registration: { enabled: true } },
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'HS256'] },
    cookies: { keys: ['of this process alone'] },
    interactions: { url: (_, { uid }) => SIGN_IN + uid },
    findAccount: account,
    loadExistingGrant: grant,
  });
  return { provider, answer: provider.callback() };
}

async function signIn(provider, request, response) {
  let body = '';
  for await (const part of request) body += part;
  const given = new URLSearchParams(body);
  const user = known.users[given.get('login')];
  if (user && user.password === given.get('password')) {
    const result = { login: { accountId: given.get('login') }, consent: {} };
    await provider.interactionFinished(request, response, result);
  } else {
    response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8' }).end(PAGE);
  }
}

const server = createServer((request, response) => {
  const { host } = request.headers;
  if (!issuers.has(host)) issuers.set(host, issuer(host));
  const { provider, answer } = issuers.get(host);
  if (request.url.startsWith(SIGN_IN)) {
    signIn(provider, request, response).catch(() => response.writeHead(400).end());
  } else {
    answer(request, response);
  }
});

server.listen(0, '127.0.0.1', () => {
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      known = JSON.parse(line);
      issuers.clear();
      console.log(server.address().port);
    })
    .on('close', () => process.exit());
});
