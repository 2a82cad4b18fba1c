{{/* The server's container: (root, server, component). */}}
{{- define "llava-api.container" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $component := index . 2 -}}
{{- $several := gt (int $server.multiNode.nodes) 1 -}}
- name: {{ $component }}
  image: {{ include "llava-api.image" (list $root $server) }}
  imagePullPolicy: {{ $server.image.pullPolicy }}
  {{- if eq $component "worker" }}
  command: [tini, --, /bin/sh, -ec, {{ $root.Files.Get "files/ray-worker.sh" | quote }}]
  {{- else if $several }}
  command: [tini, --, /bin/sh, -ec, {{ $root.Files.Get "files/ray-leader.sh" | quote }}, {{ $server.model | quote }}]
  {{- else }}
  args: [serve, {{ $server.model | quote }}]
  {{- end }}
  env:
    {{- include "llava-api.containerEnv" . | nindent 4 }}
  {{- if eq $component "server" }}
  ports:
    - name: http
      containerPort: 8000
    {{- if $server.metrics.enabled }}
    - name: metrics
      containerPort: {{ $server.metrics.port }}
    {{- end }}
  startupProbe:
    httpGet: {path: /health/ready, port: http}
    {{- toYaml $server.probes.startup | nindent 4 }}
  readinessProbe:
    httpGet: {path: /health/ready, port: http}
    {{- toYaml $server.probes.readiness | nindent 4 }}
  {{- /* If callers occupy all connections of the API's port, the port answers 503; the model must not be loaded again for that. */}}
  livenessProbe:
    httpGet: {path: /health/live, port: {{ ternary "metrics" "http" $server.metrics.enabled }}}
    {{- toYaml $server.probes.liveness | nindent 4 }}
  {{- end }}
  {{- /* All pods of a group get SIGTERM at once; the other pods' GPUs are needed until the leader has drained. */}}
  {{- $sleep := add (int $server.preStopSeconds) (ternary (int $server.drainTimeoutSeconds) 0 (eq $component "worker")) | int }}
  {{- if gt $sleep 0 }}
  lifecycle:
    preStop:
      sleep:
        seconds: {{ $sleep }}
  {{- end }}
  {{- /* Why a container ended is then in the pod's state, which outlives its log. */}}
  terminationMessagePolicy: FallbackToLogsOnError
  securityContext:
    {{- toYaml $server.securityContext | nindent 4 }}
  resources:
    {{- $resources := deepCopy (default dict $server.resources) }}
    {{- $claims := list }}
    {{- range default list (get $server.podSpec "resourceClaims") }}{{ $claims = append $claims (dict "name" .name) }}{{ end }}
    {{- if $claims }}
    {{- $resources = merge $resources (dict "claims" $claims) }}
    {{- else if gt (int $server.gpu.count) 0 }}
    {{- $_ := set $resources "limits" (merge (dict $server.gpu.resource $server.gpu.count) (default dict $resources.limits)) }}
    {{- end }}
    {{- toYaml $resources | nindent 4 }}
  volumeMounts:
    {{- include "llava-api.serverMounts" $server | nindent 4 }}
    - name: shm
      mountPath: /dev/shm
    {{- if $server.apiKeys.enabled }}
    - name: api-keys
      mountPath: /etc/llava-api/keys
      readOnly: true
    {{- end }}
    {{- if $server.apiKeys.limits }}
    - name: limits
      mountPath: /etc/llava-api/limits
      readOnly: true
    {{- end }}
    {{- with $server.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/*
The settings are in the pod's own template and not in a ConfigMap, which an upgrade would change under the pods of the
release before: one of them that restarts in the middle of a bad upgrade would come back with the bad settings.
*/}}
{{- define "llava-api.containerEnv" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $env := list -}}
{{- if lt (int $server.gpu.count) 1 }}{{ $env = append $env (include "llava-api.noGpu" . | fromYaml) }}{{ end }}
{{- range $name, $value := include "llava-api.settings" . | fromYaml }}
{{- /* Kubernetes would put a variable's value in the place of $(NAME). */}}
{{- $env = append $env (dict "name" $name "value" (replace "$(" "$$(" $value)) }}
{{- end }}
{{- if gt (int $server.multiNode.nodes) 1 }}
{{- $env = append $env (dict "name" "VLLM_HOST_IP" "valueFrom" (dict "fieldRef" (dict "fieldPath" "status.podIP"))) }}
{{- $env = append $env (dict "name" "RAY_PORT" "value" (toString $server.multiNode.rayPort)) }}
{{- $env = append $env (dict "name" "RAY_JOIN_TIMEOUT_SECONDS" "value" (toString $server.multiNode.joinTimeoutSeconds)) }}
{{- end }}
{{- if not (include "llava-api.weightsAreThere" $server) }}
{{- with include "llava-api.hubSecret" $root }}
{{- $env = append $env (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" $root.Values.hub.secretKey))) }}
{{- end }}
{{- end }}
{{- with include "llava-api.redisSecret" $root }}
{{- $env = append $env (dict "name" "LLAVA_RATE_LIMIT_REDIS_URL" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" $root.Values.redis.secretKey))) }}
{{- end }}
{{- include "llava-api.envOver" (list $env $server.env) }}
{{- end }}

{{/* (the chart's variables, those of the values, which take precedence): each name once. */}}
{{- define "llava-api.envOver" -}}
{{- $given := list }}
{{- range index . 1 }}{{ $given = append $given .name }}{{ end }}
{{- $own := list }}
{{- range index . 0 }}{{ if not (has .name $given) }}{{ $own = append $own . }}{{ end }}{{ end }}
{{- toYaml (concat $own (index . 1)) }}
{{- end }}
