{{- define "imds-observer.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "imds-observer.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "imds-observer.labels" -}}
{{ include "imds-observer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "imds-observer.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "imds-observer.priorityClass" -}}
{{- .Values.priorityClass.name | default (ternary (include "imds-observer.name" .) "" .Values.priorityClass.create) -}}
{{- end -}}

{{/* Where the runtime keeps what names a container: below the directory that has its socket. */}}
{{- define "imds-observer.runtimeState" -}}
{{- get (dict
  "containerd" "/run/containerd/io.containerd.runtime.v2.task"
  "k3s" "/run/k3s/containerd/io.containerd.runtime.v2.task"
  "crio" "/var/lib/containers/storage/overlay-containers"
  "docker" "/var/lib/docker/containers"
  ) .Values.containerRuntime -}}
{{- end -}}
