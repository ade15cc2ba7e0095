// An OpenID provider on loopback, whose keys can be changed: node provider.mjs DIR, where DIR has its node_modules.
// POST /rotate gives it a new key to sign with; ?old=forget lets it forget those before. GET /fetches counts fetches of keys.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const require = createRequire(pathToFileURL(`${process.argv[2]}/package.json`));
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const newKey = () => {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };
};

let keys = [newKey()];
let fetches = 0;
let handle;

const orders = {
  audience: 'orders',
  scope: 'read write',
  accessTokenFormat: 'jwt',
  accessTokenTTL: 300,
  jwt: { sign: { alg: 'RS256' } },
};

const begin = (issuer) => {
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: 'shop',
        client_secret: 'a secret of the shop',
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    cookies: { keys: ['a key of cookies'] },
    jwks: { keys },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:orders',
        getResourceServerInfo: () => orders,
        useGrantedResource: () => true,
      },
    },
  });
  handle = provider.callback();
};

const server = createServer((request, response) => {
  const url = new URL(request.url, 'http://provider');
  if (url.pathname === '/rotate') {
    keys = [newKey(), ...(url.searchParams.get('old') === 'forget' ? [] : keys)];
    begin(issuer);
    response.end('{}');
  } else if (url.pathname === '/fetches') {
    response.end(JSON.stringify({ fetches }));
  } else {
    if (url.pathname === '/jwks') fetches += 1;
    handle(request, response);
  }
});
let issuer;
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  begin(issuer);
  console.log(server.address().port);
});
