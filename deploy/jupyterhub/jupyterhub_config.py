"""JupyterHub on one machine with a Dask Gateway beside it:  jupyterhub -f jupyterhub_config.py

Then, with the same token and NTKDIST_GATEWAY_HUB=http://127.0.0.1:8281/hub/api:
dask-gateway-server -f ../gateway/dask_gateway_config.py

In a user's notebook ``cluster=nd.Gateway(workers=4)``, or ``[cluster] type = "gateway"`` in a job, needs no address:
the hub sets it, under the names that the Helm chart daskhub sets too, so notebooks move to Kubernetes as they are.

Environment, all of it optional but the token:
JUPYTERHUB_API_TOKEN       a secret of the hub and the gateway (openssl rand -hex 32)
NTKDIST_HUB_PORT           first of two ports; 8200: users, 8201: API of the proxy
NTKDIST_HUB_API_PORT       8281: the hub, for servers and services
NTKDIST_GATEWAY_PORT       as for the gateway
NTKDIST_HUB_AUTHENTICATOR  how users log in; and NTKDIST_HUB_SPAWNER
"""

import os

c = get_config()  # noqa: F821

env = os.environ
port = int(env.get("NTKDIST_HUB_PORT", "8200"))
gateway_port = int(env.get("NTKDIST_GATEWAY_PORT", "8000"))
api_port = int(env.get("NTKDIST_HUB_API_PORT", "8281"))
c.JupyterHub.bind_url = f"http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{api_port}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{port + 1}"

# PAM, the default: users of this machine.  Who may log in is for the site to say, never "all" on a network.
c.JupyterHub.authenticator_class = env.get("NTKDIST_HUB_AUTHENTICATOR", "pam")
c.JupyterHub.spawner_class = env.get("NTKDIST_HUB_SPAWNER", "jupyterhub.spawner.LocalProcessSpawner")
c.Spawner.default_url = "/lab"

c.JupyterHub.services = [
    {"name": "dask-gateway", "api_token": env["JUPYTERHUB_API_TOKEN"], "url": f"http://127.0.0.1:{gateway_port}"}
]
c.JupyterHub.load_roles = [
    {
        "name": "dask-gateway",  # may ask who a token belongs to
        "services": ["dask-gateway"],
        "scopes": ["read:users", "read:users:groups", "list:users"],
    },
    {"name": "user", "scopes": ["self", "access:services!service=dask-gateway"]},
]
# A server's token, which its notebooks show to the gateway, has less than its user: by default nothing about services.
c.Spawner.server_token_scopes = [
    "users:activity!user",
    "access:servers!server",
    "access:services!service=dask-gateway",
]
c.Spawner.environment = {
    "DASK_GATEWAY__AUTH__TYPE": "jupyterhub",
    "DASK_GATEWAY__ADDRESS": f"http://127.0.0.1:{port}/services/dask-gateway",
    "DASK_GATEWAY__PROXY_ADDRESS": f"gateway://127.0.0.1:{gateway_port + 1}",
    "DASK_GATEWAY__PUBLIC_ADDRESS": "/services/dask-gateway/",
}
