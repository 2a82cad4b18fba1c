# One of the other nodes: it lends its GPUs to the leader, and ends where the leader does. Tries until the leader is there.
until ray health-check --address "$LWS_LEADER_ADDRESS:$RAY_PORT"; do sleep 2; done
exec ray start --block --address="$LWS_LEADER_ADDRESS:$RAY_PORT" --node-ip-address="$VLLM_HOST_IP" --disable-usage-stats
