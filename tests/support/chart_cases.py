"""Values that the chart is rendered with, beside its examples."""

from tests.support.chart import EXAMPLES, Object, example

HUB = "llava-hf/llava-1.5-7b-hf"
TWO_MODELS: Object = {
    "models": [{"name": "one", "model": "llava-tiny-1.5"}, {"name": "two", "model": "llava-tiny-1.6"}]
}
POOL: Object = {"inferencePool": {"enabled": True, "endpointPicker": "llava-epp"}}
ROUTE: Object = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["a.example.com"]}}
CLAIM: Object = {"persistence": {"enabled": True, "accessModes": ["ReadWriteMany"]}}
JOB: Object = {"model": HUB, "download": {"mode": "job"}, **CLAIM}
SCALING: Object = {"autoscaling": {"enabled": True}, "settings": {"max_num_seqs": 128}}
MULTI_NODE: Object = {"gpu": {"count": 4}, "multiNode": {"nodes": 2}}

SWITCHES: dict[str, tuple[Object, set[str]]] = {
    # What is set, and the kinds of objects that this adds to a release with defaults (-: takes away).
    "gpu": ({"gpu": {"count": 1, "runtimeClassName": "nvidia"}}, set()),
    "no-service-account": ({"serviceAccount": {"create": False, "name": "other"}}, {"-ServiceAccount"}),
    "no-keys": ({"apiKeys": {"enabled": False}}, {"-Secret"}),
    "keys-elsewhere": ({"apiKeys": {"existingSecret": "keys"}}, {"-Secret"}),
    "keys-given": ({"apiKeys": {"values": {"anne": "sk-llava-0123456789"}}}, set()),
    "limits": ({"apiKeys": {"limits": "[anne]\nrequests_per_minute = 5\n"}}, {"ConfigMap"}),
    "hub-token": ({"hub": {"token": "hf_0123456789", "endpoint": "https://hub.example.com"}}, {"Secret"}),
    "hub-token-elsewhere": ({"hub": {"existingSecret": "hub"}}, set()),
    "redis": ({"redis": {"url": "redis://:password@redis:6379"}}, {"Secret"}),
    "claim": (CLAIM, {"PersistentVolumeClaim"}),
    "claim-elsewhere": ({"persistence": {"enabled": True, "existingClaim": "weights"}}, set()),
    "batches": ({"batches": {"enabled": True}}, {"PersistentVolumeClaim"}),
    "batches-elsewhere": ({"batches": {"enabled": True, "existingClaim": "files"}}, set()),
    "fetch-before": ({"model": HUB, "revision": "abc", "download": {"mode": "initContainer", "also": ["a/b"]}}, set()),
    "fetch-job": ({"model": HUB, "download": {"mode": "job"}, **CLAIM}, {"Job", "PersistentVolumeClaim"}),
    "multi-node": (MULTI_NODE, {"-Deployment", "LeaderWorkerSet"}),
    "no-budget": ({"podDisruptionBudget": {"enabled": False}}, {"-PodDisruptionBudget"}),
    "autoscaling": (SCALING, {"HorizontalPodAutoscaler"}),
    "autoscaling-groups": (
        {**MULTI_NODE, **SCALING},
        {"-Deployment", "LeaderWorkerSet", "HorizontalPodAutoscaler"},
    ),
    "keda": ({"keda": {"enabled": True}}, {"ScaledObject"}),
    "keda-with-a-password": (
        {
            "keda": {
                "enabled": True,
                "authenticationRef": {"name": "prometheus"},
                "metadata": {"authModes": "bearer"},
                "fallback": {"failureThreshold": 3, "replicas": 2},
            }
        },
        {"ScaledObject"},
    ),
    "affinity": ({"service": {"sessionAffinity": "ClientIP"}}, set()),
    "no-metrics": ({"metrics": {"enabled": False}}, {"-Service"}),
    "service-monitor": ({"serviceMonitor": {"enabled": True}}, {"ServiceMonitor"}),
    "pod-monitor": ({"podMonitor": {"enabled": True}}, {"PodMonitor"}),
    "rules": (
        {"prometheusRule": {"enabled": True, "rules": [{"alert": "Mine", "expr": "up == 0"}]}},
        {"PrometheusRule"},
    ),
    "dashboard": ({"dashboard": {"enabled": True}}, {"ConfigMap"}),
    "no-network-policy": ({"networkPolicy": {"enabled": False}}, {"-NetworkPolicy"}),
    "ingress": (
        {
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": ["a.example.com", "b.example.com"],
                "tlsSecret": "tls",
            }
        },
        {"Ingress"},
    ),
    "route": (ROUTE, {"HTTPRoute"}),
    "pool": (POOL, {"InferencePool"}),
    "pool-behind-route": ({**POOL, **ROUTE}, {"InferencePool", "HTTPRoute"}),
    "no-test": ({"tests": {"enabled": False}}, {"-Pod"}),
    "extra": (
        {
            "extraManifests": [
                {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "{{ .Release.Name }}-extra"}},
                "apiVersion: v1\nkind: LimitRange\nmetadata:\n  name: {{ .Release.Name }}-text\n",
            ]
        },
        {"LimitRange"},
    ),
}

OTHERS: dict[str, Object] = {
    "everything": {
        "model": HUB,
        "servedModelNames": ["a", "b"],
        "revision": "abc",
        "commonLabels": {"team": "vision"},
        "imagePullSecrets": [{"name": "registry"}],
        "settings": {
            "lora": ["x=/data/x", "y=/data/y"],
            "max_body_bytes": 250_000_000,
            "allowed_media_ports": [443, 8443],
        },
        "gpu": {"count": 2, "resource": "nvidia.com/mig-3g.40gb", "runtimeClassName": "nvidia"},
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high",
        "schedulerName": "volcano",
        "podAnnotations": {"a.example.com/b": "c"},
        "podLabels": {"team": "vision"},
        "persistence": {
            "enabled": True,
            "accessModes": ["ReadWriteMany"],
            "storageClass": "nfs",
            "annotations": {"a": "b"},
        },
        "download": {
            "mode": "job",
            "also": ["openai/clip-vit-large-patch14-336"],
            "include": ["*.json", "*.safetensors"],
        },
        "hub": {"token": "hf_0123456789"},
        "redis": {"url": "redis://:password@redis:6379"},
        "apiKeys": {"values": {"anne": "sk-llava-0123456789"}, "limits": "[anne]\nrequests_per_minute = 5\n"},
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        "initContainers": [{"name": "before", "image": "busybox"}],
        "sidecars": [{"name": "beside", "image": "busybox"}],
        "volumes": [{"name": "more", "emptyDir": {}}],
        "volumeMounts": [{"name": "more", "mountPath": "/more"}],
        "keda": {"enabled": True},
        "podSpec": {"hostAliases": [{"ip": "10.0.0.9", "hostnames": ["hub.internal"]}]},
        "workloadLabels": {"kueue.x-k8s.io/queue-name": "inference"},
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
        "networkPolicy": {
            "from": [{"podSelector": {}}],
            "metricsFrom": [{"podSelector": {}}],
            "egress": [{"ports": [{"port": 6379}]}],
        },
        "ingress": {"enabled": True},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "LLM"}},
        **POOL,
        **ROUTE,
    },
    "models-scaled-apart": {
        **TWO_MODELS,
        "router": {
            "autoscaling": {"enabled": True},
            "key": {"existingSecret": "router-key"},
            "image": {"tag": "edge"},
            "podSpec": {"hostAliases": [{"ip": "10.0.0.9", "hostnames": ["hub.internal"]}]},
            "networkPolicy": {"egress": [{"ports": [{"port": 6379}]}]},
        },
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
    },
    "models-apart": {**TWO_MODELS, "router": {"enabled": False}},
    "models-of-two-speeds": {
        "models": [
            {"name": "slow", "model": "a/b", "drainTimeoutSeconds": 900, "terminationGracePeriodSeconds": 920},
            {"name": "quick", "model": "c/d", "drainTimeoutSeconds": 5, "terminationGracePeriodSeconds": 30},
        ]
    },
    "models-open": {**TWO_MODELS, "apiKeys": {"enabled": False}, "hub": {"token": "hf_0123456789"}},
    "odd-names": {"models": [{"name": "1", "model": "llava-tiny-1.5"}, {"name": "on", "model": "llava-tiny-1.6"}]},
}

CASES: dict[str, Object] = {
    "default": {},
    **{name: example(name) for name in EXAMPLES},
    **{name: values for name, (values, _) in SWITCHES.items()},
    **OTHERS,
}
