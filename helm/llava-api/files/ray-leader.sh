# The first of several nodes: Ray's head, then the server as soon as all nodes have joined. $0: the model.
ray start --head --port="$RAY_PORT" --node-ip-address="$VLLM_HOST_IP" --include-dashboard=false --disable-usage-stats
python3 - <<'END'
import os, time, ray
ray.init(address="auto", log_to_driver=False)
end = time.monotonic() + float(os.environ["RAY_JOIN_TIMEOUT_SECONDS"])
while (here := sum(node["Alive"] for node in ray.nodes())) < int(os.environ["LWS_GROUP_SIZE"]):
    if time.monotonic() > end:
        raise SystemExit(f"only {here} of {os.environ['LWS_GROUP_SIZE']} nodes joined in time")
    time.sleep(2)
END
exec llava-api serve "$0"
