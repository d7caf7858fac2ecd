"""Dask Gateway on one machine, without Kubernetes:  dask-gateway-server -f dask_gateway_config.py

Each cluster is a scheduler process and worker processes on this machine.  With NTKDIST_GATEWAY_HUB the gateway is a
service of a JupyterHub (see ../jupyterhub) and users are the hub's; without it, users are whoever they say they are
(fine on a machine of one's own, where it listens on loopback only).

Environment, all of it optional but the token of a hub:
NTKDIST_GATEWAY_PORT     first of three ports; 8000: clients, 8001: schedulers, 8002: API
NTKDIST_GATEWAY_CORES    of a worker; and NTKDIST_GATEWAY_MEMORY
NTKDIST_GATEWAY_HUB      the hub's API, http://127.0.0.1:8281/hub/api
JUPYTERHUB_API_TOKEN     of the hub's service "dask-gateway"
"""

import os

c = get_config()  # noqa: F821

env = os.environ
port = int(env.get("NTKDIST_GATEWAY_PORT", "8000"))
c.Proxy.address = f"127.0.0.1:{port}"
c.Proxy.tcp_address = f"127.0.0.1:{port + 1}"
c.DaskGateway.address = f"127.0.0.1:{port + 2}"

# "Unsafe": processes of all users are of the gateway's own system user.  For several users on one machine run it as
# root with dask_gateway_server.backends.local.LocalBackend instead, which starts them as the users.
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"

# The gateway's defaults are the commands dask-scheduler and dask-worker, which no longer exist.
c.ClusterConfig.scheduler_cmd = ["dask", "scheduler"]
# One Dask thread on all its cores: a task of ntkdist uses them itself and keeps one accumulator, not one a core.
c.ClusterConfig.worker_cmd = ["dask", "worker"]
c.ClusterConfig.worker_threads = 1
c.ClusterConfig.worker_cores = int(env.get("NTKDIST_GATEWAY_CORES", "1"))
c.ClusterConfig.worker_memory = env.get("NTKDIST_GATEWAY_MEMORY", "2 G")
c.ClusterConfig.scheduler_memory = "1 G"
c.ClusterConfig.idle_timeout = 3600.0  # a notebook that was left open holds no workers overnight
c.ClusterConfig.environment = {
    # What workers need to open the object store, if the gateway has it: it never travels in a job.
    **{name: value for name, value in env.items() if name.startswith(("AWS_", "AZURE_STORAGE_", "GOOGLE_"))},
}

if hub := env.get("NTKDIST_GATEWAY_HUB"):
    c.DaskGateway.authenticator_class = "dask_gateway_server.auth.JupyterHubAuthenticator"
    c.JupyterHubAuthenticator.jupyterhub_api_url = hub
    c.JupyterHubAuthenticator.jupyterhub_api_token = env["JUPYTERHUB_API_TOKEN"]
    c.JupyterHubAuthenticator.jupyterhub_service_name = "dask-gateway"
    c.Proxy.prefix = "/services/dask-gateway"
else:
    c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
