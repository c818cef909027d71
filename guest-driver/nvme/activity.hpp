// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace vvfu::nvme {

/// Counts asynchronous operations whose callbacks are still to come, so that a reset can wait for the last one; and
/// makes those callbacks harmless when the controller is destroyed first. One thread only.
class Activity {
public:
    Activity() : state_(std::make_shared<State>()) {}
    Activity(const Activity &) = delete;
    Activity &operator=(const Activity &) = delete;

    /// Wraps the callback of an operation that is about to start; the operation counts until it is called, once.
    template <typename F>
    [[nodiscard]] auto track(F callback)
    {
        ++state_->operations;
        return [weak = std::weak_ptr<State>(state_), callback = std::move(callback)](auto &&...arguments) mutable {
            if (const auto state = weak.lock()) {
                callback(std::forward<decltype(arguments)>(arguments)...);
                state->finished();
            }
        };
    }

    /// Wraps a callback that a reset need not wait for.
    template <typename F>
    [[nodiscard]] auto guard(F callback) const
    {
        return [weak = std::weak_ptr<State>(state_), callback = std::move(callback)]() mutable {
            if (const auto state = weak.lock()) {
                callback();
            }
        };
    }

    [[nodiscard]] bool idle() const noexcept { return state_->operations == 0; }

    /// Runs `callback` once no operation is under way; inside the call if that is now.
    void when_idle(std::function<void()> callback)
    {
        if (idle()) {
            callback();
        } else {
            state_->waiting.push_back(std::move(callback));
        }
    }

private:
    struct State {
        std::size_t operations = 0;
        std::vector<std::function<void()>> waiting;

        void finished()
        {
            if (--operations > 0) {
                return;
            }
            for (auto &callback : std::exchange(waiting, {})) {
                callback();
            }
        }
    };
    std::shared_ptr<State> state_;
};

}  // namespace vvfu::nvme
