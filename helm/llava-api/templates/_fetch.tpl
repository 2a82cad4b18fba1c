{{/* Server: the hub ids that are fetched, as {ids: [...]}: the model's, download.also and those of adapters. */}}
{{- define "llava-api.fetchedIds" -}}
{{- $ids := list }}
{{- if and (include "llava-api.isHubId" .model) (not .download.command) }}{{ $ids = append $ids .model }}{{ end }}
{{- toYaml (dict "ids" (concat $ids .download.also (include "llava-api.adapters" . | fromYaml).ids)) }}
{{- end }}

{{/* Server: {ids, folders} of settings.lora. */}}
{{- define "llava-api.adapters" -}}
{{- $ids := list }}
{{- $folders := list }}
{{- $lora := default list .settings.lora }}
{{- range kindIs "string" $lora | ternary (splitList "," (toString $lora)) $lora }}
{{- $source := regexReplaceAll "^[^=]*=" . "" | trim }}
{{- if include "llava-api.isHubId" $source }}{{ $ids = append $ids $source }}{{ else }}{{ $folders = append $folders $source }}{{ end }}
{{- end }}
{{- toYaml (dict "ids" $ids "folders" $folders) }}
{{- end }}

{{- define "llava-api.isHubId" -}}
{{- if regexMatch "^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$" . }}yes{{ end }}
{{- end }}

{{/* Server: a file whose name goes with what is fetched; it is in /data when all of it is there. */}}
{{- define "llava-api.fetchedMark" -}}
{{- $also := concat .download.also .download.command (include "llava-api.adapters" . | fromYaml).ids -}}
/data/.fetched-{{ list .model .revision .download.include $also | toJson | sha256sum | trunc 10 }}
{{- end }}

{{/* (name, the Job that the cluster has under it or an empty map, the release's revision): a failed Job is never started
again, so its successor has another name. */}}
{{- define "llava-api.jobName" -}}
{{- $failed := false }}
{{- range default list (default dict (index . 1).status).conditions }}
{{- if and (eq .type "Failed") (eq .status "True") }}{{ $failed = true }}{{ end }}
{{- end }}
{{- index . 0 }}{{ if $failed }}-r{{ index . 2 }}{{ end }}
{{- end }}

{{/* Root: a group of alerts about weights that do not arrive; empty if the servers download them themselves. */}}
{{- define "llava-api.weightsAlerts" -}}
{{- $jobs := list }}
{{- $pods := list }}
{{- range (include "llava-api.servers" . | fromYaml).servers }}
{{- if eq .download.mode "job" }}{{ $jobs = append $jobs (printf "%s-[0-9a-f]{10}(-r[0-9]+)?" .name) }}{{ end }}
{{- if eq .download.mode "initContainer" }}{{ $pods = append $pods (include "llava-api.podPattern" .) }}{{ end }}
{{- end }}
{{- if or $jobs $pods -}}
- name: {{ include "llava-api.fullname" . }}-weights
  rules:
    {{- with $jobs }}
    - alert: LlavaApiDownloadFailed
      expr: kube_job_failed{namespace="{{ $.Release.Namespace }}",job_name=~"{{ join "|" . }}",condition="true"} > 0
      labels: {severity: critical}
      annotations:
        summary: {{ `The download of weights {{ $labels.job_name }} failed, and the pods that wait for it hold their GPUs.` | quote }}
        runbook_url: {{ $.Values.prometheusRule.runbookUrl }}#llavaapidownloadfailed
        description: {{ printf "kubectl --namespace %s logs --all-containers job/{{ $labels.job_name }} says why. helm upgrade starts it anew." $.Release.Namespace | quote }}
    {{- end }}
    {{- with $pods }}
    - alert: LlavaApiDownloadFailing
      expr: increase(kube_pod_init_container_status_restarts_total{namespace="{{ $.Release.Namespace }}",pod=~"{{ join "|" . }}",container=~"fetch-[0-9]+"}[1h]) > 2
      labels: {severity: critical}
      annotations:
        summary: {{ `{{ $labels.pod }} cannot download its weights, and holds its GPUs.` | quote }}
        runbook_url: {{ $.Values.prometheusRule.runbookUrl }}#llavaapidownloadfailed
        description: {{ printf "kubectl --namespace %s logs --previous {{ $labels.pod }} --container {{ $labels.container }} says why." $.Release.Namespace | quote }}
    {{- end }}
{{- end }}
{{- end }}

{{/* (root, server): the pods of the Job that fetches weights. */}}
{{- define "llava-api.fetchPod" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
metadata:
  labels:
    {{- include "llava-api.podLabels" (list $root "download") | nindent 4 }}
    llava-api/model: {{ $server.key | quote }}
    {{- with $server.download.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $server.download.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "llava-api.podBasics" . | nindent 2 }}
  {{- /* Not OnFailure: the Job controller would delete the pod, and with it the log that says why. */}}
  restartPolicy: Never
  initContainers:
    {{- include "llava-api.fetchContainers" . | trim | nindent 4 }}
  containers:
    - name: mark
      command: [touch, {{ include "llava-api.fetchedMark" $server }}]
      env:
        - {{ include "llava-api.noGpu" . | nindent 10 | trim }}
      {{- include "llava-api.helper" . | nindent 6 }}
  volumes:
    {{- include "llava-api.dataVolume" $server | nindent 4 }}
    {{- include "llava-api.tmpVolume" $server | nindent 4 }}
    {{- with $server.download.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* (root, server): what a container that only looks at files in /data has. */}}
{{- define "llava-api.helper" -}}
{{- $server := index . 1 -}}
image: {{ include "llava-api.image" . }}
imagePullPolicy: {{ $server.image.pullPolicy }}
securityContext:
  {{- toYaml $server.securityContext | nindent 2 }}
resources:
  requests: {cpu: 10m, memory: 16Mi}
  limits: {memory: 64Mi}
volumeMounts:
  - name: data
    mountPath: /data
{{- end }}

{{/* (root, server): a container that ends when the Job has fetched the weights. */}}
{{- define "llava-api.waitContainer" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
- name: wait-for-weights
  command: [tini, --, /bin/sh, -ec, {{ $root.Files.Get "files/wait-for-weights.sh" | quote }}, {{ include "llava-api.fetchedMark" $server }}]
  env:
    - {{ include "llava-api.noGpu" . | nindent 6 | trim }}
    - name: MODEL
      value: {{ $server.model | quote }}
    - name: DEADLINE_SECONDS
      value: {{ $server.download.deadlineSeconds | quote }}
    - name: LOGS
      value: kubectl --namespace {{ $root.Release.Namespace }} logs --all-containers --selector app.kubernetes.io/instance={{ $root.Release.Name }},app.kubernetes.io/component=download,llava-api/model={{ $server.key }}
  {{- include "llava-api.helper" . | nindent 2 }}
{{- end }}

{{/* (root, server): a container for download.command and for each hub id; no shell, so no name can mean anything to one.
tini, here and elsewhere: as a container's first process a program does not hear SIGTERM unless it asks for it. */}}
{{- define "llava-api.fetchContainers" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- if ne $server.download.mode "off" }}
{{- $adapters := (include "llava-api.adapters" $server | fromYaml).ids }}
{{- $commands := list }}
{{- with $server.download.command }}{{ $commands = append $commands . }}{{ end }}
{{- range $id := (include "llava-api.fetchedIds" $server | fromYaml).ids }}
{{- $command := list "tini" "--" "hf" "download" $id "--quiet" }}
{{- if eq $id $server.model }}
{{- with $server.revision }}{{ $command = concat $command (list "--revision" .) }}{{ end }}
{{- range $server.download.include }}{{ $command = concat $command (list "--include" .) }}{{ end }}
{{- else if has $id $adapters }}
{{- $command = concat $command (list "--include" "adapter_config.json" "--include" "adapter_model.*" "--include" "non_lora_trainables.bin") }}
{{- end }}
{{- $commands = append $commands $command }}
{{- end }}
{{- range $place, $command := $commands }}
{{- $own := and $server.download.command (eq $place 0) }}
- name: fetch-{{ $place }}
  image: {{ if and $own $server.download.image }}{{ $server.download.image }}{{ else }}{{ include "llava-api.image" (list $root $server) }}{{ end }}
  imagePullPolicy: {{ $server.image.pullPolicy }}
  command: {{ toJson $command }}
  env:
    {{- include "llava-api.fetchEnv" (list $root $server) | nindent 4 }}
  securityContext:
    {{- toYaml $server.securityContext | nindent 4 }}
  resources:
    {{- toYaml $server.download.resources | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: /data
    - name: tmp
      mountPath: /tmp
    {{- with $server.download.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, server): the chart's variables, then proxies and the hub library's settings of `env`, then download.env; a later
one takes the place of an earlier one of its name. Certificates of `env` are in a mount that the download does not have. */}}
{{- define "llava-api.fetchEnv" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- $env := list (include "llava-api.noGpu" . | fromYaml) -}}
{{- $env = append $env (dict "name" "HOME" "value" "/tmp") -}}
{{- $env = append $env (dict "name" "HF_HOME" "value" "/tmp/huggingface") -}}
{{- $env = append $env (dict "name" "HF_HUB_CACHE" "value" "/data/huggingface/hub") -}}
{{- with $server.hub.endpoint }}{{ $env = append $env (dict "name" "HF_ENDPOINT" "value" .) }}{{ end -}}
{{- with include "llava-api.hubSecret" $root }}
{{- $env = append $env (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" $root.Values.hub.secretKey))) }}
{{- end }}
{{- range $server.env }}
{{- if regexMatch "^(HF_.*|(?i:https?_proxy|no_proxy|all_proxy))$" .name }}{{ $env = append $env . }}{{ end }}
{{- end }}
{{- $named := dict }}
{{- $names := list }}
{{- range concat $env $server.download.env }}{{ $_ := set $named .name . }}{{ $names = append $names .name }}{{ end }}
{{- $last := list }}
{{- range uniq $names }}{{ $last = append $last (get $named .) }}{{ end }}
{{- toYaml $last }}
{{- end }}
