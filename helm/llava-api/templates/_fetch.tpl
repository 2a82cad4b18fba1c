{{/* Server: a file whose name goes with what is fetched; it lies in /data when all of it is there. */}}
{{- define "llava-api.fetchedMark" -}}
/data/.fetched-{{ list .model .revision .download.include .download.also | toJson | sha256sum | trunc 10 }}
{{- end }}

{{/* (root, server): the pods of the Job that fetches weights. */}}
{{- define "llava-api.fetchPod" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
metadata:
  labels:
    {{- include "llava-api.podLabels" (list $root "download") | nindent 4 }}
    llava-api/model: {{ $server.key | quote }}
spec:
  {{- include "llava-api.podBasics" . | nindent 2 }}
  restartPolicy: OnFailure
  initContainers:
    {{- include "llava-api.fetchContainers" . | trim | nindent 4 }}
  containers:
    - name: mark
      image: {{ include "llava-api.image" . }}
      imagePullPolicy: {{ $server.image.pullPolicy }}
      command: [touch, {{ include "llava-api.fetchedMark" $server }}]
      securityContext:
        {{- toYaml $server.securityContext | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        - name: data
          mountPath: /data
  volumes:
    {{- include "llava-api.dataVolumes" $server | nindent 4 }}
{{- end }}

{{/* (root, server): a container for each hub id that is fetched; no shell, so no name can mean anything to one.
tini, here and elsewhere: as a container's first process a program does not hear SIGTERM unless it asks for it. */}}
{{- define "llava-api.fetchContainers" -}}
{{- $root := index . 0 -}}
{{- $server := index . 1 -}}
{{- if ne $server.download.mode "off" }}
{{- range $place, $id := prepend $server.download.also $server.model }}
{{- $command := list "tini" "--" "hf" "download" $id "--quiet" }}
{{- if eq $place 0 }}
{{- with $server.revision }}{{ $command = concat $command (list "--revision" .) }}{{ end }}
{{- range $server.download.include }}{{ $command = concat $command (list "--include" .) }}{{ end }}
{{- end }}
- name: fetch-{{ $place }}
  image: {{ include "llava-api.image" (list $root $server) }}
  imagePullPolicy: {{ $server.image.pullPolicy }}
  command: {{ toJson $command }}
  env:
    - {name: HOME, value: /tmp}
    - {name: HF_HOME, value: /data/huggingface}
    {{- with $server.hub.endpoint }}
    - {name: HF_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- with include "llava-api.hubSecret" $root }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $root.Values.hub.secretKey | quote }}
    {{- end }}
  securityContext:
    {{- toYaml $server.securityContext | nindent 4 }}
  resources:
    {{- toYaml $server.download.resources | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: /data
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}
{{- end }}
